"""Training material from a document: what a model writes about its passages, and what it predicts with them."""
