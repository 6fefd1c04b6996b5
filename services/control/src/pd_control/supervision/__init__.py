"""Processes of this machine: started, watched, stopped, and remembered on disk."""
