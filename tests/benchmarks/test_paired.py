import pytest

from synthe_core.benchmarks import operators
from synthe_core.benchmarks.models import decoding, training
from synthe_core.benchmarks.paired import paired
from synthe_core.errors import InputError
from synthe_core.events import Measurement
from synthe_core.profiling.peak_memory import peak_bytes
from synthe_core.recipe.schema import Recipe


def test_candidates_take_turns_and_the_first_is_one():
    order = []
    result = paired({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, turns=3)
    assert order == ["a", "b"] * 4  # one turn to warm up
    assert result.ratios["a"] == 1.0 and result.ratios["b"] > 0


def test_ratios_are_taken_turn_by_turn(monkeypatch):
    """The clock is ours: a machine that slows down in its second turn slows both, and the ratio does not see it."""
    now = [0.0]
    monkeypatch.setattr("synthe_core.benchmarks.paired.time.perf_counter", lambda: now[0])
    work = {"short": iter([9.0, 1.0, 5.0, 2.0]), "long": iter([9.0, 3.0, 15.0, 4.0])}

    def spend(name):
        now[0] += next(work[name])

    result = paired({name: lambda name=name: spend(name) for name in work}, turns=3)
    assert result.ratios == {"short": 1.0, "long": 3.0}
    assert result.timings["long"] == (4.0, 3.0, 15.0) and result.timings["short"] == (2.0, 1.0, 5.0)


def test_peak_memory_includes_freed_memory():
    size = 64 << 20
    blocks = peak_bytes(lambda: bytearray(size).count(1))
    if blocks is None:
        pytest.skip("the system does not report it")
    assert blocks >= size + peak_bytes(lambda: None) // 2


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="unknown operator 'detla'"):
        list(operators.measure("detla", (), "cpu", 1))
    with pytest.raises(InputError, match="unknown peer 'flash'"):
        list(operators.measure("delta", ("flash",), "cpu", 1))


@pytest.fixture
def recipe():
    block = [{"type": "momentum"}, {"type": "attention", "heads": 2, "window": 8}]
    return Recipe.model_validate({"model": {"width": 16, "blocks": 1, "block": block}})


def test_training_and_decoding_are_measured(recipe):
    events = [*training({"ours": recipe, "theirs": recipe}, (8,), 16, 2, "cpu")]
    events += decoding({"ours": recipe}, (4, 20), 2, "cpu")
    result = [(event.case, event.values) for event in events if isinstance(event, Measurement)]
    assert [case for case, _ in result] == ["training B=2 T=8"] * 2 + [f"decoding after {n} tokens" for n in (4, 20)]
    assert all(values["ratio"] > 0 for _, values in result)
