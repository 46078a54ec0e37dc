"""Rows of conversations, preferences and ratings as examples: what is trained on, what is skipped, and the cache."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.data.conversations import prepare
from synthe_core.data.conversations.example_batches import ExampleStream, Side, example_batch
from synthe_core.data.conversations.examples import Examples
from synthe_core.data.conversations.prepare import open_examples
from synthe_core.data.conversations.sources import RowSource
from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import ByteTokenizer, Tokenizer
from synthe_core.errors import InputError
from synthe_core.events import Event, Notice, Progress
from synthe_core.ops.cross_entropy import IGNORED
from tests.data.test_training_text import CHATML, tokenizer


def chat(*turns: str) -> dict[str, Any]:
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[n % 2], "content": text} for n, text in enumerate(turns)]}


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(
    path: Path, reads: Any = "conversations", made: Tokenizer | None = None, **keys: Any
) -> tuple[Examples, list[str]]:
    """The examples of a file, and the notices."""
    spec = DataSpec.model_validate({"sources": str(path), "sequence": 400} | keys)
    work = open_examples(spec, RowSource.open(str(path)), reads, made or tokenizer(CHATML))
    events: list[Event] = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as end:
            return end.value, [event.message for event in events if isinstance(event, Notice)]


def decoded(examples: Examples, made: Tokenizer, example: int, text: int = 0) -> str:
    """A text, what is trained on between [ and ]."""
    ids, trained = examples.text(example, text)
    marks = torch.diff(trained.int(), prepend=torch.zeros(1), append=torch.zeros(1)).tolist()
    parts = [made.decode_marked([i]) for i in ids.tolist()]
    signs = {1.0: "[", -1.0: "]", 0.0: ""}
    return "".join(signs[mark] + part for mark, part in zip(marks, [*parts, ""], strict=True))


def test_a_conversation_becomes_tokens_and_what_is_trained_on(tmp_path: Path) -> None:
    made = tokenizer(CHATML)
    examples, notices = read(write(tmp_path / "c.jsonl", [chat("Hi", "Yo", "So?", "No.")]), made=made)
    assert not notices and len(examples) == 1
    shown = decoded(examples, made, 0)
    assert shown.count("[Yo<|im_end|>]") == shown.count("[No.<|im_end|>]") == 1
    assert shown.startswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n[Yo")
    last, _ = read(tmp_path / "c.jsonl", made=made, trained="last")
    assert "[Yo" not in decoded(last, made, 0) and "[No.<|im_end|>]" in decoded(last, made, 0)


def test_a_model_without_a_template_reads_what_serve_would_give_it(tmp_path: Path) -> None:
    made = ByteTokenizer()
    examples, _ = read(write(tmp_path / "c.jsonl", [chat("Hi", "Yo")]), made=made)
    ids, trained = examples.text(0, 0)
    assert made.decode(ids.tolist()) == "User: Hi\nAssistant: Yo"
    assert ids[trained].tolist() == [*made.encode(" Yo"), made.end]


def test_targets_are_the_trained_tokens_alone(tmp_path: Path) -> None:
    examples, _ = read(write(tmp_path / "c.jsonl", [chat("Hi", "Yo"), chat("Hello there", "What is it?")]))
    batch = example_batch([(Side(examples, np.arange(2)), 0), (Side(examples, np.arange(2)), 1)])
    assert batch.lengths is not None
    for row in range(2):
        ids, trained = examples.text(row, 0)
        length = int(batch.lengths[row])
        assert length == len(ids) - 1
        assert torch.equal(batch.inputs[row, :length], ids[:-1])
        scored = batch.targets[row] != IGNORED
        assert torch.equal(batch.targets[row][scored], ids[1:][trained[1:]])
        assert not scored[length:].any()


def test_rows_that_cannot_be_used_are_named_and_counted(tmp_path: Path) -> None:
    rows = [chat("Hi", "Yo"), {"foo": 1}, chat("Hi", " "), {"messages": []}, chat("x", "y" * 900)]
    path = write(tmp_path / "c.jsonl", rows)
    examples, notices = read(path)
    assert (len(examples), examples.skipped) == (1, 4)
    assert notices[0] == f"{path}: 4 of 5 rows are skipped, 1 of them for their length"
    assert f"{path}, line 2: the row has foo" in notices[1]
    again, same = read(path)
    assert same == notices and len(again) == 1  # from the cache


def test_a_file_without_a_usable_row_is_an_error(tmp_path: Path) -> None:
    path = write(tmp_path / "c.jsonl", [{"text": "prose"}])
    with pytest.raises(InputError, match=r"no row of .* can be used; the first: .*line 1: the row has text"):
        read(path)
    with pytest.raises(InputError, match="is empty"):
        read(write(tmp_path / "empty.jsonl", []))
    plain = tmp_path / "a.txt"
    plain.write_text("prose")
    with pytest.raises(InputError, match="no table of conversations"):
        read(plain)
    with pytest.raises(InputError, match="no such file"):
        read(tmp_path / "nowhere.jsonl")


def test_a_long_conversation_loses_whole_turns_at_its_end(tmp_path: Path) -> None:
    made = tokenizer(CHATML)
    path = write(tmp_path / "c.jsonl", [chat("Hi", "Yo", "So?", "No." * 60, "And?", "Yes.")])
    examples, notices = read(path, made=made, sequence=150)
    assert decoded(examples, made, 0).endswith("[Yo<|im_end|>]\n")
    assert notices == [f"{path}: 1 conversations lose their last turns to fit data.sequence"]


def test_a_very_long_conversation_is_cut_to_the_turns_that_fit(tmp_path: Path) -> None:
    """As if turns were taken from its end one by one."""
    made = tokenizer(CHATML)
    turns = [f"turn {n} {'x' * (n % 7)}" for n in range(120)]
    path = write(tmp_path / "c.jsonl", [chat(*turns)])
    examples, _ = read(path, made=made, sequence=900)
    shown = decoded(examples, made, 0)
    answers = shown.count("[turn")
    longer, _ = read(write(tmp_path / "l.jsonl", [chat(*turns[: 2 * answers + 2])]), made=made, sequence=9000)
    assert 5 < answers < 60 and int(longer.lengths()[0, 0]) - 1 > 900 >= int(examples.lengths()[0, 0]) - 1


def test_a_column_that_is_missing_skips_its_row_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"q": "A", "a": "B"}, {"q": "C"}])
    examples, notices = read(path, columns={"prompt": "q", "completion": "a"})
    assert len(examples) == 1 and "no column 'a'" in notices[1]


def test_rows_read_together_are_the_rows_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [chat(f"Hi {n}", "Yo" * (n % 5)) for n in range(12)] + [{"foo": 1}, chat("a", "b", "c", "d" * 900)]
    path = write(tmp_path / "c.jsonl", rows)
    together, notices = read(path)
    monkeypatch.setattr(prepare, "CHUNK", 1)
    path.touch()
    alone, same = read(path)
    assert together.digests.tolist() == alone.digests.tolist() and notices == same


def test_progress_says_how_much_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "CHUNK", 3)
    monkeypatch.setattr(prepare.time, "monotonic", iter(range(100)).__next__)
    path = write(tmp_path / "c.jsonl", [chat("Hi", "Yo")] * 9)
    spec = DataSpec.model_validate({"sources": str(path)})
    work = open_examples(spec, RowSource.open(str(path)), "conversations", tokenizer(CHATML))
    shown = [event for event in work if isinstance(event, Progress)]
    assert [(event.done, event.total) for event in shown] == [(3, 9), (6, 9), (9, 9)]
    assert [event.eta for event in shown] == [pytest.approx(2), pytest.approx(1), pytest.approx(0)]


def test_a_preference_has_two_texts_with_one_prompt(tmp_path: Path) -> None:
    made = tokenizer(CHATML)
    row = {"prompt": "Which?", "chosen": "This.", "rejected": "That one."}
    same = row | {"rejected": "This."}
    path = write(tmp_path / "p.jsonl", [row, same, {**row, "chosen": "It."}])
    examples, notices = read(path, "preferences", made)
    assert (examples.texts, len(examples), examples.skipped) == (2, 2, 1)
    assert "[This.<|im_end|>]" in decoded(examples, made, 0, 0) and "[That one.<|im_end|>]" in decoded(
        examples, made, 0, 1
    )
    assert examples.keys[0] == examples.keys[1] and "chosen and rejected are the same" in notices[1]
    batch = example_batch([(Side(examples, np.arange(2)), 1)])
    assert batch.group == 2 and len(batch.inputs) == 2
    ratings, _ = read(path, "ratings", made)
    assert ratings.texts == 1 and ratings.good.tolist() == [True, False, True, False]


def test_an_objective_that_reads_something_else_is_suggested(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": "Which?", "chosen": "This.", "rejected": "That."}])
    with pytest.raises(InputError, match="a preference, and the objective reads conversations") as failed:
        read(path)
    assert "--objective dpo" in str(failed.value.hint)


def test_columns_have_other_names(tmp_path: Path) -> None:
    path = write(tmp_path / "q.jsonl", [{"q": "Which?", "a": "This."}])
    examples, _ = read(path, columns={"prompt": "q", "completion": "a"})
    assert len(examples) == 1
    with pytest.raises(InputError, match=r"no column 'b', which data.columns gives for completion"):
        read(path, columns={"prompt": "q", "completion": "b"})


def test_the_stream_goes_on_from_its_cursor(tmp_path: Path) -> None:
    rows = [chat(f"Question {n}", f"Answer {n}") for n in range(7)]
    examples, _ = read(write(tmp_path / "c.jsonl", rows))

    def stream() -> ExampleStream:
        return ExampleStream([Side(examples, np.arange(7))], [1.0], 3, seed=5)

    whole = stream()
    batches: list[torch.Tensor] = [whole.next(3).inputs for _ in range(6)]
    first = stream()
    for _ in range(2):
        first.next(3)
    second = stream()
    second.seek(first.cursor())
    for expected in batches[2:]:
        assert torch.equal(second.next(3).inputs, expected)


def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path) -> None:
    path = write(tmp_path / "c.jsonl", [chat("Hi", "Yo")])
    read(path)
    stored: Iterator[Path] = (cache / "examples").glob("*.safetensors")
    for file in stored:
        file.write_bytes(file.read_bytes()[:-3])
    assert len(read(path)[0]) == 1
