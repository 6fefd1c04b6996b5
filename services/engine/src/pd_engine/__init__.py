"""Role and environment to one `vllm serve` command, and an announcer for engines that cannot ping.

Runs inside the vLLM image as plain source beside `pd_contracts`: it needs msgspec and pyzmq, which vLLM brings along.
"""
