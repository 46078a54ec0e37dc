"""Stop strings are found in the text that comes, at a cost that depends on the text alone."""

from __future__ import annotations

import random

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.stop_strings import StopStrings


def by_trying(text: str, stops: list[str]) -> tuple[str, str, bool]:
    """What is shown of a text, what is held back, and whether it has stopped: by comparing everything."""
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(map(len, complete))], "", True
    held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
    return text[: len(text) - held], text[len(text) - held :], False


@pytest.mark.parametrize("seed", range(40))
def test_the_text_is_what_comparing_everything_gives(seed: int) -> None:
    draw = random.Random(seed)
    stops = ["".join(draw.choices("ab", k=draw.randint(1, 6))) + draw.choice(["", "c"]) for _ in range(4)]
    text = "".join(draw.choices("abc", [5, 5, 1], k=60))
    detokenizer, shown = Detokenizer(ByteTokenizer().decoder(), stops), ""
    for end, byte in enumerate(text.encode(), 1):
        shown += detokenizer.push(byte)
        expected, _, stopped = by_trying(text[:end], stops)
        assert (shown, detokenizer.stopped) == (expected, stopped)
        if stopped:
            break
    assert shown + detokenizer.flush() == (shown if detokenizer.stopped else text)


def test_nothing_follows_a_stop_string() -> None:
    detokenizer = Detokenizer(ByteTokenizer().decoder(), ["!"])
    assert "".join(detokenizer.push(byte) for byte in b"ab!cd") == "ab" and detokenizer.stopped
    assert detokenizer.push(0xC3) + detokenizer.flush() == ""


class Counting(dict[int, int]):
    looked_up = 0

    def get(self, key: int, default: int | None = None) -> int | None:  # type: ignore[override]
        self.looked_up += 1
        return super().get(key, default)


@pytest.mark.parametrize("text", ["a" * 5000, "ab" * 2500, ("a" * 999 + "x") * 5])
def test_long_stop_strings_cost_two_steps_a_character(text: str) -> None:
    """16 strings of 1,000 characters that nearly come all the time."""
    automaton = StopStrings(["a" * (900 + n) + "b" for n in range(16)])
    automaton._edges = Counting(automaton._edges)
    state = 0
    for character in text:
        state = automaton.step(state, character)
    assert automaton._edges.looked_up <= 2 * len(text)
    assert len(automaton.depths) <= 1 + 915 + 16, "what the strings have in common is stored once"
