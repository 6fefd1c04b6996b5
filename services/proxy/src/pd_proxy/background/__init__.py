"""Background work: health checks, canaries, a watchdog for stalled engines, deadlines of requests, and decode's use of abandoned KV."""
