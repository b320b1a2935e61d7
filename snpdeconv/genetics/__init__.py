"""Floor 1: cohorts on disk and in memory, and statistics of genotypes. Knows no model and no training."""
