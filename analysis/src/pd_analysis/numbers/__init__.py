"""Numbers from columns: latencies, rates, intervals, comparisons, sweeps."""
