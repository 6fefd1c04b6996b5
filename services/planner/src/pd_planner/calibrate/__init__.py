"""A profile from run folders: what engines did, step by step, and what clients saw of it."""
