"""Tensors in, tensors out: the only room with native code. Specification: `reference`."""
