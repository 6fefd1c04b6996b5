"""The comparison: each topology in turn gets the same load."""
