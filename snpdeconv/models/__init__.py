"""Floor 2: the networks, from genotype codes on a device to logits. Knows no files, no training."""
