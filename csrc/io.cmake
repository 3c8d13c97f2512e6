set(TOKENVM_IO_SOURCES
    csrc/src/bindings_io.cpp
    csrc/src/crc32c.cpp
    csrc/src/io_copy.cpp
    csrc/src/io_pool.cpp
    csrc/src/io_queue.cpp
    csrc/src/ring.cpp)
