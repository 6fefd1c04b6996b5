"""What the columns say: latencies, rates, intervals, comparisons, sweeps."""
