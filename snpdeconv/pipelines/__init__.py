"""Floor 5: what the commands do, composed of the floors below."""
