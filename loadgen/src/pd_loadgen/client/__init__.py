"""How a server is asked and its answer read: HTTP/1.1, keys and certificates, the protocols of servers. No I/O."""
