"""The offered traffic: when requests come and how long they are."""
