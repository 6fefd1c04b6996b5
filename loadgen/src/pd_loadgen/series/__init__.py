"""Many runs: sweeps, and the search for the highest rate that meets the limits."""
