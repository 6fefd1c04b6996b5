"""What a plan becomes: a file that can be checked later, variables for Compose, values for Helm, a measurement to make."""
