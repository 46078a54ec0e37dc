"""Makes `synthe` a name of lm-evaluation-harness's own command.

The harness has a table of models and no way for another package to add to it. torch, which it loads before it looks
into that table, calls the entry points of the group `torch.backends`; ours adds the name where the harness is running,
and does nothing elsewhere. (`TORCH_DEVICE_BACKEND_AUTOLOAD=0` turns that off; calling `register` does the same.)
"""

from __future__ import annotations

import sys

NAME = "synthe"
TARGET = "synthe_core.evaluation.harness_model:Synthe"


def register() -> None:
    """Adds the name to the harness's table of models."""
    import lm_eval.models  # noqa: F401 (its own names, which it adds only to an empty table)
    from lm_eval.api.registry import model_registry

    if NAME not in model_registry:
        model_registry.register(NAME, target=TARGET)


def autoload() -> None:
    """The entry point that torch calls when it is imported."""
    if "lm_eval" in sys.modules:
        register()
