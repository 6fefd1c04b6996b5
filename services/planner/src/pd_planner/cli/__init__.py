"""`pd-plan`: the commands."""
