"""Prompts: generated ones, files, data sets, recorded traffic, pictures and sounds."""
