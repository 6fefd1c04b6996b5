"""`pdctl compare`: several deployments, one after the other on the same GPUs, under the same loads."""
