"""Results: a run's folder, manifest and summary, and tables of many runs."""
