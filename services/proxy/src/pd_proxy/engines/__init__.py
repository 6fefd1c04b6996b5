"""Who the engines are, which may serve, and which shall. No I/O."""
