"""Pure: which page is where. No tensors, threads, clocks or files."""
