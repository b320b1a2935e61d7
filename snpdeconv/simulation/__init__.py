"""Floor 2: cohorts whose truth is known, from the coalescent to files on disk."""
