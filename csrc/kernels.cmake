# Kernel sources. Each instruction set is an object library with its own flags; the rest is built for the baseline and
# reaches them through the tables of kernels.hpp.
set(TOKENVM_KERNEL_SOURCES
    csrc/src/bindings_kernels.cpp csrc/src/bindings_tape.cpp csrc/src/bindings_bench.cpp
    csrc/src/bindings_codec.cpp)
set(TOKENVM_KERNEL_OBJECTS)

function(tokenvm_kernel_objects name)
  cmake_parse_arguments(ARG "" "" "SOURCES;FLAGS" ${ARGN})
  add_library(${name} OBJECT ${ARG_SOURCES})
  target_include_directories(${name} PRIVATE csrc/include)
  target_compile_options(${name} PRIVATE ${TOKENVM_COMMON_FLAGS} ${ARG_FLAGS})
  set(TOKENVM_KERNEL_OBJECTS ${TOKENVM_KERNEL_OBJECTS} ${name} PARENT_SCOPE)
endfunction()

tokenvm_kernel_objects(tokenvm_drivers SOURCES
  csrc/src/team.cpp csrc/src/isa.cpp csrc/src/linear.cpp csrc/src/norm.cpp csrc/src/paging.cpp csrc/src/attention.cpp
  csrc/src/quantise.cpp csrc/src/bitpack.cpp)
tokenvm_kernel_objects(tokenvm_portable SOURCES csrc/src/kernels_portable.cpp)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  # GCC's own intrinsic headers trip this warning.
  set(TOKENVM_AVX512_FLAGS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi -mpopcnt -Wno-maybe-uninitialized -Wno-uninitialized)
  tokenvm_kernel_objects(tokenvm_avx2 SOURCES csrc/src/kernels_avx2.cpp FLAGS -mavx2 -mfma -mbmi -mpopcnt)
  tokenvm_kernel_objects(tokenvm_avx512 SOURCES csrc/src/kernels_avx512.cpp FLAGS ${TOKENVM_AVX512_FLAGS})
  tokenvm_kernel_objects(tokenvm_amx SOURCES csrc/src/kernels_amx.cpp FLAGS ${TOKENVM_AVX512_FLAGS} -mavx512vbmi2 -mavx512bf16 -mamx-tile -mamx-bf16 -mprfchw)
endif()
