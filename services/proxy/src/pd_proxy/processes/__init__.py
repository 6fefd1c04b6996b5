"""The processes that serve: one alone, or a parent and its workers."""
