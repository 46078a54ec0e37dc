"""`synthe bench speed`: what it refuses, and decoding beside other programs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--part", "decodin"), "decodin"),
        (("--against", "llama.cpp"), "--against llama.cpp needs a model"),
        (("x", "--part", "ops"), "MODEL is for decoding"),
        (("x", "--recipe", "tiny"), "MODEL is for decoding"),
        (("x", "--device", "cuda"), "on the CPU"),
        (("x", "--rows", "1,many"), "--rows 1,many: not numbers"),
        (("no-such-model",), "no-such-model"),
    ],
)
def test_bad_input_is_one_line(synthe: Run, arguments: tuple[str, ...], message: str) -> None:
    done = synthe("bench", "speed", *arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_decoding_beside_other_programs(synthe: Run, checkpoint: Path) -> None:
    arguments = ("bench", "speed", checkpoint, "--against", "llama.cpp", "--rows", 1, "--tokens", 16, "--turns", 1)
    done = synthe(*arguments)
    assert done.exit_code == 0 and "warning: not measured: llama.cpp" in done.stderr
    assert "synthe over HTTP" in done.stdout and "prefill of 512 tokens" in done.stdout
    lines = [json.loads(line) for line in synthe(*arguments, "--json").stdout.splitlines()]
    values = [line["values"] for line in lines if line["event"] == "measurement"]
    assert [each["candidate"] for each in values] == ["synthe", "synthe over HTTP"] * 2
