"""The promotion gate: measures a new adapter beside the current one, in the arithmetic in which the swarm answers."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from threading import Event as Stop
from typing import Any

import numpy as np
import torch

from synthe_core.adapters.lora import Adapter
from synthe_core.data.conversations.example_batches import Side, example_batches
from synthe_core.data.conversations.prepare import open_examples
from synthe_core.data.conversations.sources import RowSource
from synthe_core.data.prepare import open_data
from synthe_core.data.spec import DataSpec
from synthe_core.data.stream import Batch, windows
from synthe_core.errors import InputError, Interrupted
from synthe_core.evaluation.bits_per_byte import evaluate_bits_per_byte
from synthe_core.evaluation.continuations import split_pairs
from synthe_core.events import Event, Progress
from synthe_core.interop.load import load_model
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.swarm.learning.figures import Figures, PairFigures
from synthe_core.swarm.learning.questions import DEFAULT, Question, read_questions
from synthe_core.swarm.spec import PromotionSpec
from synthe_core.training.objectives.answers import answer_logprobs

ROWS = 4
"""Pairs, windows or questions of a pass."""
WINDOW = 512
"""Tokens of other text that are read from a fresh state."""

Versions = Sequence[Adapter | None]
Work = Generator[Event, None, Any]


class Gate:
    """The model under the adapters, loaded once. data: how its text becomes tokens. stop: ends the work with
    Interrupted."""

    def __init__(self, base: Path, data: DataSpec, spec: PromotionSpec, stop: Stop) -> None:
        self.model = load_model(base, "base", batch_invariant=False, weights="auto")
        self.data, self.spec, self._stop = data, spec, stop

    def measure(
        self,
        origin: Path | None,
        before: Path | None,
        after: Path,
        held_out: Path,
        earlier: Sequence[Path],
        resolve: Callable[[str], str],
    ) -> Generator[Event, None, Figures]:
        """Measures the adapter `after`.

        origin: the adapter that swarm.yaml names; before: the current one; None for none. held_out, earlier: files of
        pairs. resolve: the path of a file that swarm.yaml names.
        """
        first, old, new = (None if path is None else self.model.read_adapter(path) for path in (origin, before, after))
        margins = yield from self._margins([old, new], held_out)
        old_margins, new_margins = [], []
        for path in earlier:
            pair = yield from self._margins([old, new], path)
            old_margins += pair[0]
            new_margins += pair[1]
        canary = yield from self._canary([first, new], resolve)
        questions = DEFAULT if self.spec.tasks is None else read_questions(Path(resolve(self.spec.tasks)))
        tasks = yield from self._tasks([first, new], questions)
        return Figures(
            PairFigures.of(*margins),
            PairFigures.of(old_margins, new_margins) if old_margins else None,
            (canary[0], canary[1]),
            (tasks[0], tasks[1]),
            len(questions),
        )

    def _margins(self, versions: Versions, path: Path) -> Generator[Event, None, list[list[float]]]:
        """For each version the margin of every pair in the file, see `PairFigures`."""
        examples = yield from open_examples(self.data, RowSource.open(str(path)), "preferences", self.model.tokenizer)
        batches = list(example_batches([Side(examples, np.arange(len(examples)))], len(examples), ROWS))
        differences = []
        for version in (None, *versions):
            values: list[float] = []
            for number, batch in enumerate(batches):
                yield self._progress("held-out pairs", number, len(batches))
                chosen, rejected = self._logprobs(version, batch).view(-1, 2).T
                values += (chosen - rejected).tolist()
            differences.append(values)
        reference, *rest = differences
        return [[value - zero for value, zero in zip(each, reference, strict=True)] for each in rest]

    def _canary(self, versions: Versions, resolve: Callable[[str], str]) -> Generator[Event, None, list[float]]:
        """Bits per byte of other text under each version."""
        source = self.spec.canary if self.spec.canary == "stdlib" else resolve(self.spec.canary)
        text = {"sources": {"source": source, "limit": self.spec.canary_bytes}, "validation": 0.0, "stream": False}
        data = yield from open_data(DataSpec.model_validate({**self.data.model_dump(), **text, "sequence": WINDOW}))
        split = data.sources[0].train
        values = []
        for version in versions:
            batches = list(windows(split, WINDOW, None, ROWS))
            if not batches:
                raise InputError(f"promotion.canary: {source} has no text", "name a longer one")
            with self.model.activate(version):
                for score in evaluate_bits_per_byte(self.model.model, batches, self.model.context):
                    yield self._progress("other text", score.rows, ROWS * len(batches))
            values.append(score.bits_per_byte)
        return values

    def _tasks(self, versions: Versions, questions: Sequence[Question]) -> Generator[Event, None, list[float]]:
        """The share of questions whose right choice is the likeliest, under each version."""
        batches = [self._batch(questions[at : at + ROWS]) for at in range(0, len(questions), ROWS)]
        values = []
        for version in versions:
            right = 0
            for number, batch in enumerate(batches):
                yield self._progress("questions", number, len(batches))
                scores = iter(self._logprobs(version, batch).tolist())
                for each in questions[number * ROWS : (number + 1) * ROWS]:
                    own = [next(scores) for _ in each.choices]
                    right += max(range(len(own)), key=own.__getitem__) == each.answer
            values.append(right / len(questions))
        return values

    def _batch(self, questions: Sequence[Question]) -> Batch:
        """Every choice of the questions as a row, of which the choice is scored."""
        tokenizer = self.model.tokenizer
        begin = [] if tokenizer.begin is None else [tokenizer.begin]
        pairs = [(each.question.rstrip(), f" {choice.strip()}") for each in questions for choice in each.choices]
        rows = split_pairs(
            pairs,
            lambda texts: [list(tokenizer.encode(text)) for text in texts],
            lambda tokens: [*begin, *tokens],
            tokenizer.end,
        )
        lengths = torch.tensor([len(each.context) + len(each.continuation) - 1 for each in rows])
        inputs = torch.zeros(len(rows), int(lengths.max()), dtype=torch.int64)
        targets = torch.full_like(inputs, IGNORED)
        for row, each in enumerate(rows):
            tokens = torch.tensor([*each.context, *each.continuation])
            inputs[row, : lengths[row]] = tokens[:-1]
            targets[row, len(each.context) - 1 : lengths[row]] = tokens[len(each.context) :]
        return Batch(inputs, targets, lengths)

    def _logprobs(self, version: Adapter | None, batch: Batch) -> torch.Tensor:
        """log p of each row's targets [B], on the CPU."""
        model = self.model
        with torch.no_grad(), model.activate(version):
            return answer_logprobs(model.model, batch.to(model.device))[1].cpu()

    def _progress(self, what: str, done: int, total: int) -> Progress:
        if self._stop.is_set():
            raise Interrupted("stopped while measuring", "the same command continues where it stopped")
        return Progress(f"measuring: {what}", min(done, total), total)
