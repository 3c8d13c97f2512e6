set(TOKENVM_IO_SOURCES csrc/src/bindings_io.cpp)
