"""How KV gets from prefill to decode, the memory it takes there, and the KV that is left there after failures."""
