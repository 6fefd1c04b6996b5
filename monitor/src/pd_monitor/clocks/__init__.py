"""Clock locks and power caps per role, held under a lease and restored whatever happens.

NVML has no getter for a clock lock, so what was changed is known from the journal alone: it is on disk before the first change.
A guard process restores everything when the holder dies or sends no heartbeat. What neither can restore (both killed, power lost), the
next start does.
"""
