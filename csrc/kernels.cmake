set(TOKENVM_KERNEL_SOURCES csrc/src/bindings_kernels.cpp)
set(TOKENVM_KERNEL_OBJECTS)
