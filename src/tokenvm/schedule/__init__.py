"""Pure: which sequences run next. No tensors, threads, clocks or files."""
