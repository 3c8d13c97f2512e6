"""Replays traces of real services through the policies and the planner that the engine uses."""
