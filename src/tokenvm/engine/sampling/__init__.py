"""Logits to tokens, and how likely tokens were."""
