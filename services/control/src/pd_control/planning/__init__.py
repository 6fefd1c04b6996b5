"""What to start: which engine gets which GPUs and ports, as a list of processes. No I/O."""
