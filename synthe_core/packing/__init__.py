"""The .synapse format: one file that carries a model, its adapters, its memory and its proof."""
