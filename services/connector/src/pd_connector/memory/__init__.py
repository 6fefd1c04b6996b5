"""Where a block's bytes are, and how they are copied: in the host's memory, and on NVIDIA GPUs."""
