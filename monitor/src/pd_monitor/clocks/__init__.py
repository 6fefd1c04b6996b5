"""Clock locks and power caps per role, held under a lease and taken back whatever happens.

NVML has no getter for a clock lock, so what was changed is known from the journal alone: it is on disk before the first change.
A guard process takes everything back when the holder dies or stops beating; what both leave behind (both killed, power lost) the
next start takes back.
"""
