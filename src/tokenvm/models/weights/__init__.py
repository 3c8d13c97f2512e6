"""Reading weights from files and packing them for the kernels."""
