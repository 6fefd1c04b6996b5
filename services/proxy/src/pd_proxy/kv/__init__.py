"""How KV gets from prefill to decode, the room it takes there, and what is owed when that goes wrong."""
