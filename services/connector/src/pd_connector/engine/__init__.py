"""The two halves of vLLM's connector, behind plain calls. Only `compat` knows the differences between vLLM's versions."""
