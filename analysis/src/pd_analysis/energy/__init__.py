"""Joules: of a measured window, of a role, of a phase, of a request."""
