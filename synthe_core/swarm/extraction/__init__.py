"""Claims in texts: by patterns at once, and by a model that writes JSON in the background."""
