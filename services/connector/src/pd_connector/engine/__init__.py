"""The two halves of vLLM's connector, behind plain calls; `compat` is the only place that knows what differs between vLLM's versions."""
