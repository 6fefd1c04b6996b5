"""Profiles: their numbers by name, what physics forbids, and those that are computed instead of measured."""
