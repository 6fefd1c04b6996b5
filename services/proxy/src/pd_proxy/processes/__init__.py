"""The processes that serve: a single one, or a parent and its workers."""
