"""TokenVM: virtual memory for language-model inference."""

__version__ = "0.1.0"
