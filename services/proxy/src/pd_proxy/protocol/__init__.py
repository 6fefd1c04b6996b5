"""What is written on the wire, read and written: HTTP/1.1, clients' bodies, engines' answers. No I/O."""
