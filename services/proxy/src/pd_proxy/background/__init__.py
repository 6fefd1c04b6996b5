"""What runs beside requests: health checks, canaries, engines that stand still, requests that wait too long, KV that is owed."""
