"""Run folders read into columns."""
