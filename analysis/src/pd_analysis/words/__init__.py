"""How numbers, definitions and sentences are written."""
