"""Floor 2: statistics of single variants and their tails. Knows no model and no file."""
