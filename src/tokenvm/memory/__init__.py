"""Bytes in tiers and moving them; knows slots, not meaning."""
