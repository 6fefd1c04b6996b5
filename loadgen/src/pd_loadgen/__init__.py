"""Open-loop streaming load for LLM servers: pure parts here, what sends in `pd_loadgen.live`."""

__version__ = "0.2.0"
