"""The way of one request for tokens: checked, tried until it is served, prefilled, handed over, decoded."""
