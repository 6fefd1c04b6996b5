"""Energy in joules: of a measured window, a role, a phase, a request."""
