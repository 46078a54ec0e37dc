"""Models that are larger than memory: the weights of some layers stay in their files and are read during each pass."""
