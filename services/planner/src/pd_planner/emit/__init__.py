"""The outputs of a plan: a file that can be checked later, variables for Compose, values for Helm, and a measurement to make."""
