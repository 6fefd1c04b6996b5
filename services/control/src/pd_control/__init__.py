"""pdctl: starts, watches and compares deployments, as local processes or as containers.

`planning` decides what runs (no I/O), `supervision` starts, watches and remembers processes, `doctor` looks at the machine first, `local` and
`docker` bring a deployment up in either way, `demo` offers both topologies the same load, and `cli` holds the subcommands.
"""
