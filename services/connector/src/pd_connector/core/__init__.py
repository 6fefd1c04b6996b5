"""Every decision, without threads, sockets, clocks, torch or vLLM: events go in, effects come out."""
