"""Where announcements of engines come from: pings, or Kubernetes."""
