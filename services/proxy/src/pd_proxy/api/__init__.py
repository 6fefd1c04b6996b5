"""The HTTP interface: routes, and the sockets that clients connect to."""
