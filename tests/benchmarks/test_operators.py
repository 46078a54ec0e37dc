"""Names are checked before anything is timed, and a peer that cannot run here is reported."""

from __future__ import annotations

import pytest

from synthe_core.benchmarks import operators
from synthe_core.errors import InputError
from synthe_core.events import Measurement, Notice


@pytest.mark.parametrize(
    ("ops", "against", "message", "hint"),
    [
        (["delt"], [], "unknown operator 'delt'", "did you mean 'delta'?"),
        (["delta"], ["flaa"], "unknown peer 'flaa'", "did you mean 'fla'?"),
    ],
)
def test_unknown_names(ops: list[str], against: list[str], message: str, hint: str) -> None:
    with pytest.raises(InputError) as refused:
        operators.check(ops, against)
    assert (refused.value.message, refused.value.hint) == (message, hint)


def test_fla_is_reported_and_skipped_without_a_gpu() -> None:
    events = list(operators.measure("momentum", ("reference",), "cpu", 1))
    assert {"reference"} <= {event.values["candidate"] for event in events if isinstance(event, Measurement)}
    candidates: dict[str, operators.Run] = {}
    _, arguments, *_ = operators.CASES["delta"]("cpu")
    (messages,) = operators._fla(arguments, candidates)
    assert isinstance(messages, Notice) and messages.message == "fla is left out: its kernels are written for CUDA"
    assert not candidates
