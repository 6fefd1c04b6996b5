"""A deployment as containers."""
