"""Sockets, threads and transports that carry out the decisions of `core`. Imports no vLLM and, except for the GPU transports, no torch."""
