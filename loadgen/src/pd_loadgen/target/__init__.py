"""The server under test: whether it is ready, which model it serves, which engines and GPUs it has."""
