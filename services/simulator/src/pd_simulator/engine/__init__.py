"""The engine: requests in, steps in time, tokens out; its power and its counters."""
