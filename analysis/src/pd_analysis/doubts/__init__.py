"""Why the numbers may be wrong or mean something else."""
