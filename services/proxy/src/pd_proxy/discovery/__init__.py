"""Discovery of engines: by their pings, or from Kubernetes' API."""
