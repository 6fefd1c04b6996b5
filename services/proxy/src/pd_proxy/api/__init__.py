"""What can be called over HTTP, and the sockets on which it is."""
