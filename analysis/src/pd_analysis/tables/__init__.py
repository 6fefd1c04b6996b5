"""The report's tables as data."""
