"""What is measured: is the server ready, which model does it have, which engines and GPUs serve."""
