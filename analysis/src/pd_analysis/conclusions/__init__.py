"""What the numbers mean for a decision, in sentences."""
