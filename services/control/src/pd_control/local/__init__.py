"""A deployment as processes of this machine."""
