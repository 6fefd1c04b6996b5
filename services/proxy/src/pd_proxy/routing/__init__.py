"""What a request would cost on each engine, and what follows from that: where it goes, or that it is rejected. No I/O."""
