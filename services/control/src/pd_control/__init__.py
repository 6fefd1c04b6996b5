"""pdctl: starts, watches and compares deployments, as local processes or as containers.

`planning` decides what runs (no I/O), `supervision` starts, watches and records processes, `doctor` checks the machine first, `local` and
`docker` bring a deployment up as processes or containers, `compare` offers several deployments the same loads, and `cli` holds the subcommands.
"""
