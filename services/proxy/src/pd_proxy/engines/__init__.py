"""Which engines there are, which of them may serve, and which one a request goes to. No I/O."""
