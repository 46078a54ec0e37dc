"""What a model is, with every default worked out, so that two models can be compared."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from synthe_core.model.block import residual_of
from synthe_core.model.language_model import LanguageModel

Keys = dict[str, Any]
TRAINING = ("balance", "z_loss")
"""Keys that only training reads."""
MODEL = (
    "width", "embedding_scale", "positions", "norm", "norm_eps", "head_bias", "logit_scale", "logit_cap", "depth",
)  # fmt: skip
CLOSE = 1e-6
"""Relative: a file has float32 numbers."""
FREE = {
    ("attention", "qk_norm", True, "weighted"),
    ("attention", "bias", "none", "qkv"),
    ("attention", "bias", "none", "all"),
    ("attention", "bias", "qkv", "all"),
    ("mlp", "bias", False, True),
    ("mamba", "conv_bias", False, True),
    ("mamba2", "conv_bias", False, True),
}
"""A learner's key, its value, and another that computes the same with zeros as biases and ones as a norm's weights."""


class Outline:
    """A language model: `spec`, the model's own keys, and `learners`, the keys of each, from the bottom up.

    context: the longest text that it was trained for.
    """

    def __init__(self, model: LanguageModel, context: int) -> None:
        self.model, self.spec, self.vocab, self.context = model, model.spec, model.vocab, context
        self.learners = [resolved(learner) for learner in model.learners]

    def changed(self, learners: list[Keys], **spec: Any) -> Outline:
        """This one with other learners, and other keys of the model."""
        other = copy.copy(self)
        other.learners, other.spec = learners, self.spec.model_copy(update=spec)
        return other

    def kinds(self) -> list[str]:
        return [each["type"] for each in self.learners]

    def of(self, kind: str) -> list[Keys]:
        """The learners of a kind."""
        return [each for each in self.learners if each["type"] == kind]

    def layers(self, *kinds: Sequence[str]) -> list[tuple[Keys, ...]] | None:
        """The learners in layers of as many as `kinds`, each of one of the kinds at its place; None if there are
        others."""
        count = len(kinds)
        rows = [tuple(self.learners[i : i + count]) for i in range(0, len(self.learners), count)]
        fits = all(len(row) == count and all(a["type"] in b for a, b in zip(row, kinds, strict=True)) for row in rows)
        return rows if fits and rows else None


def resolved(learner: Any) -> Keys:
    """The keys of a learner's specification with its defaults."""
    config = learner.config
    keys: Keys = {key: value for key, value in config.model_dump().items() if key not in TRAINING}
    keys["residual"] = residual_of(config).model_dump()
    return keys | RESOLVED.get(config.type, lambda _: {})(learner)


def _attention(learner: Any) -> Keys:
    config = learner.config
    scaling = None if config.rope_scaling is None else config.rope_scaling.model_dump()
    if scaling is not None and "attention_factor" in scaling:
        scaling["attention_factor"] = config.rope_scaling.amplitude
    return {
        "kv_heads": learner.groups,
        "head_size": learner.size,
        "rope_size": learner.turned if config.rope is not None else None,
        "rope_scaling": scaling,
        "scale": config.scale or learner.size**-0.5,
        "norm_eps": config.norm_eps if config.qk_norm else None,
    }


def _mlp(learner: Any) -> Keys:
    return {"hidden": learner.out.in_features}


def _experts(learner: Any) -> Keys:
    config = learner.config
    return {
        "hidden": learner.pool.out.in_features // config.experts,
        "normalize": learner.pool.routing.normalize,
        "bias_rate": config.bias_rate is not None,
    }


def _mamba(learner: Any) -> Keys:
    return {"dt_rank": learner.rank, "norm_eps": learner.config.norm_eps if learner.config.bc_dt_norm else None}


def _mamba2(learner: Any) -> Keys:
    config = learner.config
    normed = config.norm != "none"
    return {
        "heads": learner.heads,
        "expand": None,
        "multipliers": list(config.multipliers or (1.0,) * 5),
        "time_step_limit": list(config.time_step_limit),
        "norm_groups": (config.norm_groups or config.groups) if normed else None,
        "norm_eps": config.norm_eps if normed else None,
    }


def _delta(learner: Any) -> Keys:
    return {
        "key_size": learner.key,
        "value_size": learner.value,
        "value_heads": learner.value_heads,
        "conv": learner.taps,
    }


RESOLVED: dict[str, Callable[[Any], Keys]] = {
    "attention": _attention,
    "mlp": _mlp,
    "experts": _experts,
    "mamba": _mamba,
    "mamba2": _mamba2,
    "delta": _delta,
}


def difference(ours: Outline, theirs: Outline) -> str | None:
    """The first thing that `theirs` computes in another way; None if it can compute the same (`FREE`)."""
    for key in MODEL:
        if not same(a := getattr(ours.spec, key), b := getattr(theirs.spec, key)):
            return f"model.{key} is {a}, and {b} there"
    if len(ours.learners) != len(theirs.learners):
        return f"it has {len(ours.learners)} learners, and {len(theirs.learners)} there"
    for i, (own, other) in enumerate(zip(ours.learners, theirs.learners, strict=True)):
        if own["type"] != other["type"]:
            return f"learner {i} is {own['type']}, and {other['type']} there"
        for key, value in own.items():
            if not same(value, other[key]) and not _is_free(own["type"], key, value, other[key]):
                return f"{own['type']}.{key} is {value}, and {other[key]} there"
    beside = any(each["residual"]["parallel"] or each["residual"]["norm"] == "shared" for each in ours.learners)
    if beside and _sizes(ours) != _sizes(theirs):
        return "its blocks have other learners side by side"
    return None


def _is_free(kind: str, key: str, own: Any, other: Any) -> bool:
    return isinstance(own, str | bool) and isinstance(other, str | bool) and (kind, key, own, other) in FREE


def _sizes(outline: Outline) -> list[int]:
    spec = outline.model.spec
    return [len(spec.learners_of(block)) for block in range(spec.blocks)]


def same(a: Any, b: Any) -> bool:
    """Whether two values agree, numbers to float32."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    if isinstance(a, int | float) and isinstance(b, int | float):
        return math.isclose(a, b, rel_tol=CLOSE)
    return bool(a == b)


def places(outline: Outline) -> Iterator[tuple[int, int]]:
    """The block of each learner, and its place there."""
    for block, size in enumerate(_sizes(outline)):
        yield from ((block, place) for place in range(size))
