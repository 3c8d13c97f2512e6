"""Decoders driven by a spec; they see KV only through a ForwardContext."""
