"""Floor 3: the training loop and what it needs. Knows kinds of traits, no other genetics, and no MLflow."""
