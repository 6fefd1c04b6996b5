"""Run folders to tables, plots and the report that decides.

The way of a number: `load` reads and refuses, `frames` puts records into columns, `metrics` and `energy` measure one run,
`compare` sets runs of the same workload side by side, `doubts` says why not to believe it, `tables` and `plots` show it, and
`report` and `terminal` write it down. Everything between `load` and `report` is without I/O.
"""
