"""KV-safe proxy in front of prefill, decode and combined engines.

Pure decisions (registry, pairing, generation, transfer, rewrite) are in modules without I/O; discovery, admission, upstream
and routes are the edges; exchange holds the rules that keep KV safe.
"""

__version__ = "0.1.0"
