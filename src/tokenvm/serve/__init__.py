"""The HTTP server: OpenAI's interface over an AsyncLLM."""
