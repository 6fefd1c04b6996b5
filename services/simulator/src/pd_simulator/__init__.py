"""pd-simulator: one process that behaves to its callers as one vLLM 0.23 engine does, without a GPU.

What is real: the HTTP API, the pings, the scheduling of steps, and the KV bytes that travel between processes. What is modelled:
how long a step takes and what the board draws while it does (see `steps.step_time`, `engine.board` and the profiles).
"""

__version__ = "0.2.0"
