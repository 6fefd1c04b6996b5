"""What a run is asked to do, and the whole load that follows from it before the first request."""
