"""What crosses the network and the HTTP interface: messages, their framing, and the `pd` map of a request."""
