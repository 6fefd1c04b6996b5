"""Communication with engines: connections, requests in flight, answers and their streams."""
