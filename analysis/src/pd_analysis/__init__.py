"""Turn run folders into tables, plots and a report with a verdict.

The data flow: `records` reads runs into columns and refuses broken ones; `energy` and `numbers` measure each run and compare runs of the
same workload; `doubts` says why a number may be wrong; `tables` and `plots` show the numbers; `conclusions` says what they mean; and
`report` writes the pages. Everything between `records` and `report` is without I/O.
"""
