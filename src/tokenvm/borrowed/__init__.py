"""Models without a native family: Transformers' modules compute them, and attention is done here."""
