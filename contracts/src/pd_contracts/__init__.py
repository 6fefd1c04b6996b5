"""Definitions that cross a process boundary in pdstack and have at least two users.

Nothing here does I/O apart from `records` (files), `health` (one HTTP GET), `address` (the routing table) and `log` (stderr). The vLLM images carry this
package as plain source beside vLLM's own dependencies, so it needs msgspec and the standard library and nothing else.
"""

__version__ = "0.2.0"
