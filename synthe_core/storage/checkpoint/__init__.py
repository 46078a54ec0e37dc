"""A checkpoint: a folder that contains its own recipe. Every other verb takes a path to one and nothing else.

    model.safetensors      the weights (past 5 GB: several files and model.safetensors.index.json)
    recipe.yaml            resolved: every key with the value in force
    config.json            the sizes, for other programs
    tokenizer.json         if the model works on text; beside it tokenizer_config.json, and where the model has them
                           chat_template.jinja and generation_config.json
    manifest.json          what it is, where it came from, and the SHA-256 of every file
    training/              what resuming needs: state.json and safetensors files

A run folder has its checkpoints in checkpoints/step-00000500 and is accepted wherever a checkpoint is.

An adapter has adapter_config.json and adapter_model.safetensors, as PEFT writes them, in place of weights, sizes and
tokenizer: those are in its base, the checkpoint that it names. It too is accepted wherever a checkpoint is.
"""

from __future__ import annotations

from synthe_core.storage.checkpoint.locate import CHECKPOINTS, best_checkpoint, checkpoints
from synthe_core.storage.checkpoint.read import Checkpoint
from synthe_core.storage.checkpoint.weights import load_weights, weights
from synthe_core.storage.checkpoint.write import copy_checkpoint, save

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "best_checkpoint",
    "checkpoints",
    "copy_checkpoint",
    "load_weights",
    "save",
    "weights",
]
