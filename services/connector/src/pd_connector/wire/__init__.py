"""The formats on the network and in the HTTP interface: messages, their framing, and the `pd` map of a request."""
