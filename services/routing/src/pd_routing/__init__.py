"""Predicts what a request would cost on each engine, and decides by that where it goes or whether it is rejected. No I/O."""
