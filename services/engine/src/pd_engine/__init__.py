"""Turns role and environment into one `vllm serve` command; an announcer pings for engines that cannot.

Runs inside the vLLM image as plain source beside `pd_contracts`: it needs msgspec and pyzmq, which vLLM brings along.
"""
