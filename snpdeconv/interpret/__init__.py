"""Floor 5: which SNPs and blocks carry the signal, and how that is shown."""
