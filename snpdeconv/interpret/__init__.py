"""Floor 3: which SNPs and blocks carry the signal, and how that is shown."""
