"""The memory layout of blocks, and copies of them: in the host's memory, and on NVIDIA GPUs."""
