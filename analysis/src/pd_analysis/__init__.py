"""Turn run folders into tables, plots and a report with a verdict.

The way of a number: `records` reads, refuses, and puts what is read into columns; `energy` and `numbers` measure each run and set runs of the
same workload side by side; `doubts` says why not to believe it; `tables` and `plots` show it; `conclusions` says what it means; and
`report` writes it down. Everything between `records` and `report` is without I/O.
"""
