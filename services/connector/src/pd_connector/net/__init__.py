"""Sockets, threads and transports: what `core` decides is done here. Imports neither vLLM nor, but for the GPU's transports, torch."""
