"""KV-safe proxy in front of prefill, decode and combined engines.

Decisions without I/O are in `engines`, `kv` and `protocol`; `api`, `upstream` and `discovery` are the edges; `request` holds the rules
that keep KV safe. docs/proxy.md tells the way through the folders.
"""

__version__ = "0.2.0"
