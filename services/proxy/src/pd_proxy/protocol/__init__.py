"""Reads and writes what is on the wire: HTTP/1.1, clients' bodies, engines' answers. No I/O."""
