"""The engine in a process of its own: messages, the loop that obeys them, and the connection to it."""
