"""What a run leaves: its folder, manifest and summary, and tables of many runs."""
