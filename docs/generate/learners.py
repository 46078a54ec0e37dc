"""The table of learners: equations and sources from their docstrings, sizes counted on the learners themselves."""

from __future__ import annotations

from typing import Any

import torch

from docs.generate import recipe
from docs.generate.markdown import cell, prose, sources, summary, table
from docs.generate.schema import keys
from synthe_core.layers import LAYERS, build

WIDTH, TOKENS = 256, (1, 2048)


def page() -> str:
    """learners.md: one table of all, then a section for each."""
    rows, sections = [], []
    for name in LAYERS:
        learner = LAYERS[name]
        built = _built(name)
        parameters = f"{sum(each.numel() for each in built.parameters()):,}"
        state = _state(built)
        rows.append([f"[`{name}`](#{name})", cell(summary(learner)), parameters, state, cell(sources(learner))])
        sections.append(_section(name, learner))
    return "\n".join(
        [
            "# Learners\n",
            "Every `type` that `model.block` takes. Parameters and state are those of one learner with its default "
            f"keys at width {WIDTH}. State is in bytes for one sequence; a state that grows is that after "
            f"{TOKENS[1]:,} tokens. Shape letters: B batch rows, T time, D width, H heads, K key size, V value size.\n",
            "Every learner also takes `residual`, which says how the block adds it to the stream: "
            "[ResidualSpec](recipe.md#residualspec).\n",
            table(["type", "equation", "parameters", "state", "source"], rows),
            *sections,
        ]
    )


def _built(name: str) -> Any:
    with torch.device("meta"):
        return build(LAYERS[name].Config(), WIDTH)


def _state(learner: Any) -> str:
    if not learner.causal:
        return "none"
    first, later = (learner.state_bytes(tokens) for tokens in TOKENS)
    return "none" if not later else f"{later:,}" + ("" if first == later else ", grows")


def _section(name: str, learner: Any) -> str:
    schema = learner.Config.model_json_schema()
    signals = learner.publishes(learner.Config())
    notes = f"\nPublishes with its default keys: {', '.join(f'`{each}`' for each in signals)}.\n" if signals else ""
    own = keys(schema, recipe.links("recipe.md"), without=("type", "residual"))
    return f"## {name}\n\n{prose(learner)}{notes}\n{own}"
