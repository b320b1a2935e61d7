"""The presets: complete YAML files, listed by `snpdeconv presets`."""
