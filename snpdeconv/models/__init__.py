"""Networks over genotypes: encoder, bodies, heads, and how they are run. Knows no training and no file."""
