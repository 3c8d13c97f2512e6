"""Tensors in, tensors out: the only room with native code. Contracts in each module, specification in `reference`."""
