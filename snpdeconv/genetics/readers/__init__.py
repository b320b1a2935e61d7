"""One module per file format; each yields variants in chunks of bounded size."""
