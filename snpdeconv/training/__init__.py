"""Floor 3: the training loop and what it needs. Knows neither genetics nor MLflow."""
