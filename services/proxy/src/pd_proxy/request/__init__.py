"""The steps of one request for tokens: check, attempts and retries, prefill, hand-over, decode."""
