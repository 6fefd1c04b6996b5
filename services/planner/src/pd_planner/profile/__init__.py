"""Profiles: their numbers by name, physical bounds, and profiles that are computed instead of measured."""
