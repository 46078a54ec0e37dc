"""What a generation_config.json recommends."""

from __future__ import annotations

from typing import Any

import pytest

from synthe_core.errors import InputError
from synthe_core.inference.generation_defaults import GenerationDefaults


@pytest.mark.parametrize(
    ("values", "sampling", "max_tokens"),
    [
        ({}, {}, None),
        ({"temperature": 0.6, "top_p": 0.9, "do_sample": True}, {"temperature": 0.6, "top_p": 0.9}, None),
        ({"temperature": 0.6, "do_sample": False}, {"temperature": 0.0}, None),
        ({"do_sample": None, "top_k": None, "temperature": 1}, {"temperature": 1}, None),
        ({"top_k": -1, "repetition_penalty": 1.1}, {"top_k": 0, "repetition_penalty": 1.1}, None),
        ({"max_new_tokens": 512, "min_p": 0.05, "length_penalty": 2.0}, {"min_p": 0.05}, 512),
    ],
)
def test_the_keys_that_are_read(values: Any, sampling: Any, max_tokens: int | None) -> None:
    defaults = GenerationDefaults.parse(values, "model")
    assert (defaults.sampling, defaults.max_tokens) == (sampling, max_tokens)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("temperature", -1), ("temperature", "warm"), ("temperature", float("nan")), ("top_p", 2), ("top_p", 0),
        ("top_k", 1.5), ("top_k", -7), ("repetition_penalty", 0), ("max_new_tokens", 0), ("max_new_tokens", True),
        ("max_new_tokens", "9" * 10_000), ("min_p", [1]),
    ],
)  # fmt: skip
def test_an_invalid_value_is_named(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=f"model: generation_config.json has {key}") as raised:
        GenerationDefaults.parse({key: value}, "model")
    assert "--generation-config none" in (raised.value.hint or "") and len(raised.value.message) < 200


def test_what_a_request_gives_comes_first() -> None:
    defaults = GenerationDefaults.parse({"temperature": 0.6, "top_p": 0.9}, "model")
    assert defaults.apply({"temperature": 0.1}).model_dump(include={"temperature", "top_p"}) == {
        "temperature": 0.1,
        "top_p": 0.9,
    }
    assert str(defaults) == "temperature 0.6, top_p 0.9"
