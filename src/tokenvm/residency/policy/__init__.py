"""Which unit to give up when room is needed; ids only."""
