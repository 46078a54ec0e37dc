"""The rotary positions that a config asks for, as keys of `attention`."""

from __future__ import annotations

import math
from typing import Any

from synthe_core.interop.huggingface.published import Config

KINDS = ("default", "linear", "llama3", "yarn", "longrope", "dynamic")


def rotary(
    config: Config,
    head_size: int | None = None,
    share: float = 1.0,
    base: float = 10_000.0,
    *,
    given: Config | None = None,
) -> dict[str, Any]:
    """`rope`, `rope_scaling` and `rope_size` of attention.

    They come from `rope_parameters`, from the older `rope_theta` and `rope_scaling`, or from `given`, the parameters of
    a kind of layer. Where the angles depend on a text's length (`dynamic`, `longrope`), these are those of texts of
    `exact_length`.

    head_size: of an architecture that turns a share of a head's channels, `partial_rotary_factor`; `share` where the
    config has none. base: where the config has none.
    """
    given = parameters(config) if given is None else given
    keys: dict[str, Any] = {
        "rope": given.number("rope_theta", config.number("rope_theta", base)),
        "rope_scaling": _scaling(config, given),
    }
    if head_size is None:
        for place in (config, given):
            place.only("partial_rotary_factor", 1)
        return keys
    share = given.number("partial_rotary_factor", config.number("partial_rotary_factor", share))
    if not (size := int(head_size * share)) or size % 2 or size > head_size:
        raise given.unsupported("partial_rotary_factor", share, ["a share that turns an even number of channels"])
    return keys | {"rope_size": None if size == head_size else size}


def parameters(config: Config) -> Config:
    """The parameters of rotary positions that all layers share."""
    return config.inner("rope_parameters" if config.get("rope_parameters") else "rope_scaling")


def layer_parameters(config: Config, kind: str, base: float) -> Config:
    """Those of a kind of layer, with `base` where the config has none. An older config has one scaling, of the layers
    with full attention."""
    nested = config.inner("rope_parameters")
    values = nested.inner(kind).values
    if kind == "full_attention":
        values = values | config.inner("rope_scaling").values
    given = Config(config.path, {"rope_theta": base} | values, f"rope_parameters.{kind}.")
    if nested.values and not any(isinstance(each, dict) for each in nested.values.values()):
        raise config.unsupported("rope_parameters", nested.values, ["parameters for each kind of layer"])
    if (scaling := rotary_kind(given)) in ("dynamic", "longrope"):
        raise given.unsupported("rope_type", scaling, [each for each in KINDS if each not in ("dynamic", "longrope")])
    given.only("truncate", True)  # transformers reads it elsewhere
    return given


def exact_length(config: Config) -> int | None:
    """The length up to which the angles of a text do not depend on its length; None where they never do."""
    given = parameters(config)
    kind = rotary_kind(given)
    if kind == "dynamic":
        return config.size("max_position_embeddings", 2048)
    if kind != "longrope" or given.get("short_factor") == given.get("long_factor"):
        return None
    return _original(config, given)


def rotary_kind(given: Config) -> str:
    kind = given.get("rope_type", given.get("type", "default"))
    return "longrope" if kind == "su" else str(kind)


def _original(config: Config, given: Config) -> int:
    """The length of the texts before stretching."""
    key = "original_max_position_embeddings"
    return config.size(key, given.size(key, config.get("max_position_embeddings")))


def _scaling(config: Config, given: Config) -> dict[str, Any] | None:
    kind = rotary_kind(given)
    if kind not in KINDS:
        raise given.unsupported("rope_type", kind, KINDS)
    if kind in ("default", "dynamic"):
        return None
    if kind == "linear":
        return {"type": kind, "factor": given.number("factor")}
    original = _original(config, given)
    if kind == "llama3":
        return {
            "type": kind,
            "factor": given.number("factor"),
            "low": given.number("low_freq_factor"),
            "high": given.number("high_freq_factor"),
            "context": original,
        }
    factor = given.number("factor", config.size("max_position_embeddings", original) / original)
    if kind == "longrope":
        amplitude = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
        factors = given.items("short_factor")
        return {"type": kind, "factors": factors, "attention_factor": given.number("attention_factor", amplitude)}
    return {
        "type": kind,
        "factor": factor,
        "context": original,
        "fast": given.number("beta_fast", 32.0),
        "slow": given.number("beta_slow", 1.0),
        "truncate": given.flag("truncate", True),
        "attention_factor": given.number("attention_factor", _yarn_amplitude(given, factor)),
    }


def _yarn_amplitude(given: Config, factor: float) -> float:
    """What YaRN multiplies rotated queries and keys by, where the config does not say it."""
    scales = [given.number(key) for key in ("mscale", "mscale_all_dim") if given.get(key)]
    above, below = (0.1 * scale * math.log(max(factor, 1)) + 1 for scale in (scales if len(scales) == 2 else (1, 0)))
    return above / below
