"""The search: possible deployments, the capacity of each, and their ranking."""
