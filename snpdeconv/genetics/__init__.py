"""Floor 1: cohorts on disk and in memory, and what statistics of genotypes need. Knows no model, no training."""
