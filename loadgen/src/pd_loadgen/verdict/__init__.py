"""Whether the load generator itself kept up."""
