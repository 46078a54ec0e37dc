"""How many threads a pass has: the number that was fastest when passes were timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.inference import scheduler, thread_choice
from synthe_core.inference.engine import Engine
from synthe_core.inference.fused_decoder import FusedDecoder
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.thread_choice import (
    LASTS,
    PASSES,
    ROUNDS,
    ThreadChoice,
    limited_to,
    most_threads,
    numbers_of_threads,
)

GREEDY = SamplingParams(temperature=0)


def measured(choice: ThreadChoice, num_tokens: int, seconds: dict[int, float]) -> list[int]:
    """Times a choice's passes by their threads; the threads of each."""
    used = []
    for _ in range(ROUNDS * PASSES * len(seconds)):
        used.append(choice.threads(num_tokens))
        choice.record(num_tokens, seconds[used[-1]])
    return used


def test_numbers_of_threads() -> None:
    assert [numbers_of_threads(most) for most in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_the_fastest_number_is_chosen_for_each_size() -> None:
    choice = ThreadChoice(4)
    used = measured(choice, 1, {1: 1.0, 2: 1.5, 4: 3.0})
    measured(choice, 32, {1: 4.0, 2: 2.0, 4: 1.0})
    assert set(used) == {1, 2, 4} and used[:PASSES] == [1] * PASSES
    assert [choice.threads(count) for count in (1, 32, 63)] == [1, 4, 4]


def test_more_threads_must_be_clearly_faster() -> None:
    choice = ThreadChoice(2)
    measured(choice, 1, {1: 1.0, 2: 0.97})
    assert choice.threads(1) == 1


def test_one_slow_pass_does_not_decide() -> None:
    choice = ThreadChoice(2)
    for place in range(2 * ROUNDS * PASSES):
        threads = choice.threads(1)
        choice.record(1, 50.0 if threads == 2 and place == PASSES + 1 else 2.0 / threads)
    assert choice.threads(1) == 2


def test_a_choice_is_measured_again() -> None:
    choice = ThreadChoice(2)
    measured(choice, 1, {1: 1.0, 2: 2.0})
    for _ in range(LASTS):
        assert choice.threads(1) == 1
        choice.record(1, 1.0)
    measured(choice, 1, {1: 3.0, 2: 2.0})
    assert choice.threads(1) == 2


def test_a_choice_that_stays_lasts_longer() -> None:
    choice = ThreadChoice(2)
    for lasts in (LASTS, 2 * LASTS):
        measured(choice, 1, {1: 1.0, 2: 2.0})
        for _ in range(lasts):
            choice.record(1, 1.0)
    used = measured(choice, 1, {1: 1.0, 2: 2.0})
    assert 2 in used  # not one pass earlier or later


def test_choices_are_stored(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "choices.json"
    measured(ThreadChoice(2, path), 8, {1: 2.0, 2: 1.0})
    again = ThreadChoice(2, path)
    assert again.chosen == {4: 2} and again.threads(15) == 2


@pytest.mark.parametrize("content", ["", "[]", '{"1": 7}', '{"x": 1}', '{"1": [2]}'])
def test_a_damaged_file_is_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "choices.json"
    path.write_text(content)
    choice = ThreadChoice(2, path)
    assert not choice.chosen
    measured(choice, 1, {1: 2.0, 2: 1.0})
    assert ThreadChoice(2, path).chosen == {1: 2}


def test_a_folder_that_cannot_be_written_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    choice = ThreadChoice(2, tmp_path / "file" / "choices.json")
    measured(choice, 1, {1: 2.0, 2: 1.0})
    assert choice.threads(1) == 2


def test_machines_and_models_have_files_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thread_choice, "cache_dir", lambda: tmp_path)
    measured(ThreadChoice.of("one", 2), 1, {1: 2.0, 2: 1.0})
    assert ThreadChoice.of("one", 2).threads(1) == 2
    assert not ThreadChoice.of("other", 2).chosen and not ThreadChoice.of("one", 4).chosen


@pytest.mark.usefixtures("two_threads")
def test_a_block_has_its_own_number_of_threads() -> None:
    with pytest.raises(KeyError), limited_to(1):
        assert (torch.get_num_threads(), most_threads()) == (1, 2)
        with limited_to(2):
            assert torch.get_num_threads() == 1
        raise KeyError
    with limited_to(None):
        assert torch.get_num_threads() == 2
    assert (torch.get_num_threads(), most_threads()) == (2, 2)


@pytest.mark.usefixtures("two_threads")
def test_steps_of_the_engine_have_the_chosen_number(window: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """And passes go on to choose among all numbers."""
    assert window.fused_refusal is None
    choice, seen, drawn = ThreadChoice(2), list[int](), scheduler.sample
    monkeypatch.setattr(FusedDecoder, "thread_choice", lambda self: choice if most_threads() == 2 else None)

    def sample(*args: Any) -> Any:
        seen.append(torch.get_num_threads())
        return drawn(*args)

    monkeypatch.setattr(scheduler, "sample", sample)
    engine = Engine([window])
    engine.add_request(Request(window.name, (1, 2, 3), 60, GREEDY, ignore_eos=True), lambda output: False)
    while engine.has_unfinished:
        engine.step()
    trial = 2 * ROUNDS * PASSES
    assert set(seen[: 1 + trial]) == {2} and set(seen[2 + trial :]) == {choice.settled(1)}
