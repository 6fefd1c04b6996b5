"""Continuous batching and how long a step takes. Pure."""
