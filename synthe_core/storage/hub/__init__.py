"""Models of the Hugging Face hub: their ids, their download, and the hub's cache folder."""
