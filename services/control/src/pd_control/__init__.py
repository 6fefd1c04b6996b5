"""pdctl: starts, watches and compares deployments, as local processes or as containers.

`plan` decides what runs (pure), `supervisor` runs it, `state` remembers it, `ready` waits for it, `demo` puts them in a row.
"""
