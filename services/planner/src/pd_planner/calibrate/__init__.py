"""A profile from run folders: from the engines' steps, and from the latencies that clients saw."""
