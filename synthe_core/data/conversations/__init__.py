"""Conversations, preferences and rated answers as training text: their layouts, and what of them is trained on."""
