"""Adapters: small trained changes of a model whose own weights stay as they are."""
