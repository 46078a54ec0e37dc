"""The verb `eval chat`: models answer questions of several turns, and a judge rates or compares the answers."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, Interrupted
from synthe_core.evaluation.answers import Answers, request_key
from synthe_core.evaluation.chat.intervals import Mean, mean_of
from synthe_core.evaluation.chat.judge import Judge
from synthe_core.evaluation.chat.models import ChatModel
from synthe_core.evaluation.chat.questions import Question
from synthe_core.events import Event, Progress, Result


@dataclass(frozen=True)
class ChatEvaluation:
    """questions: what the models answer. max_tokens: of an answer. out: a file of answers and judgements, which a later
    run reads instead of making them again."""

    questions: Sequence[Question]
    max_tokens: int = 1024
    out: Path | None = None


def evaluate_chat(
    models: Sequence[ChatModel], judge: Judge, config: ChatEvaluation, stop: threading.Event | None = None
) -> Iterator[Event]:
    """Yields progress, and at the end a Result: the mean rating of each model by turn and category, and with several
    models the share of questions that each wins against each other, with 95% intervals.

    Interrupted when `stop` is set; with `out` a repeated run goes on there. InputError for two models of one name.
    """
    if len({model.name for model in models}) < len(models):
        raise InputError("two models have one name", "compare models of different names")
    run = _Run(judge, config, Answers(config.out), stop or threading.Event())
    answers = {}
    for model in models:
        answers[model.name] = yield from run.answers(model)
    ratings = {}
    for model in models:
        ratings[model.name] = yield from run.ratings(model, answers[model.name])
    pairs = []
    for first, second in combinations(models, 2):
        pairs.append((yield from run.comparison(first, second, answers)))
    yield Result(
        {
            "judge": judge.model.name,
            "questions": len(config.questions),
            "models": [{"model": name, **_figures(config.questions, rows)} for name, rows in ratings.items()],
            "comparisons": pairs,
        },
        config.out,
    )


@dataclass
class _Run:
    judge: Judge
    config: ChatEvaluation
    stored: Answers
    stop: threading.Event

    def answers(self, model: ChatModel) -> Generator[Event, None, list[list[str]]]:
        """One list of answers a question, one answer a turn."""
        result = []
        for question in (yield from self._each(f"{model.name} answers")):
            key = request_key("chat", [model.identity, self.config.max_tokens, question.turns])
            if key not in self.stored:
                self.stored[key] = self._converse(model, question)
            result.append(self.stored[key])
            yield from self._step()
        return result

    def ratings(self, model: ChatModel, answers: Sequence[list[str]]) -> Generator[Event, None, list[list[int | None]]]:
        """One list a question, one rating a turn."""
        result = []
        for number, question in enumerate((yield from self._each(f"{model.name} is rated"))):
            given = answers[number]
            key = request_key("rating", [self.judge.model.identity, question.model_dump(), given])
            if key not in self.stored:
                self.stored[key] = [self.judge.rate(question, given[: turn + 1]) for turn in range(len(given))]
            result.append(self.stored[key])
            yield from self._step()
        return result

    def comparison(
        self, first: ChatModel, second: ChatModel, answers: dict[str, list[list[str]]]
    ) -> Generator[Event, None, dict[str, Any]]:
        """How often `first` is better than `second`."""
        outcomes = []
        for number, question in enumerate((yield from self._each(f"{first.name} beside {second.name}"))):
            both = answers[first.name][number], answers[second.name][number]
            key = request_key("pair", [self.judge.model.identity, question.model_dump(), both])
            if key not in self.stored:
                self.stored[key] = self.judge.compare(question, *both)
            outcomes.append(self.stored[key])
            yield from self._step()
        judged = [each for each in outcomes if each is not None]
        return {
            "first": first.name,
            "second": second.name,
            "first_wins": _values(mean_of([share for share, _ in judged])),
            "ties": sum(share == 0.5 for share, _ in judged),
            "orders_disagree": sum(not agreed for _, agreed in judged),
            "not_judged": len(outcomes) - len(judged),
        }

    def _converse(self, model: ChatModel, question: Question) -> list[str]:
        messages: list[dict[str, str]] = []
        for turn in question.turns:
            messages.append({"role": "user", "content": turn})
            messages.append({"role": "assistant", "content": model.reply(messages, self.config.max_tokens)})
        return [each["content"] for each in messages[1::2]]

    def _each(self, what: str) -> Generator[Event, None, Sequence[Question]]:
        self._what, self._done, self._began = what, 0, time.monotonic()
        yield Progress(what, 0, len(self.config.questions), "questions")
        return self.config.questions

    def _step(self) -> Iterator[Event]:
        self._done += 1
        total, taken = len(self.config.questions), time.monotonic() - self._began
        yield Progress(self._what, self._done, total, "questions", taken / self._done * (total - self._done))
        if self.stop.is_set():
            hint = "repeat the command to go on" if self.config.out else "--out FILE would have stored the answers"
            raise Interrupted(f"stopped after {self._done} of {total} questions", hint)


def _figures(questions: Sequence[Question], ratings: Sequence[Sequence[int | None]]) -> dict[str, Any]:
    """The mean of all turns of a question, then over questions; that of each turn, and of each category."""
    per_question = [[rating for rating in row if rating is not None] for row in ratings]
    means = [sum(row) / len(row) for row in per_question if row]
    turns = max(map(len, ratings), default=0)
    categories: dict[str, list[float]] = {}
    for question, row in zip(questions, per_question, strict=True):
        if row:
            categories.setdefault(question.category, []).append(sum(row) / len(row))
    return {
        "rating": _values(mean_of(means)),
        "turns": [_values(mean_of(_of_turn(ratings, turn))) for turn in range(turns)],
        "categories": {name: _values(mean_of(values)) for name, values in sorted(categories.items())},
        "not_judged": sum(rating is None for row in ratings for rating in row),
    }


def _of_turn(ratings: Sequence[Sequence[int | None]], turn: int) -> list[float]:
    return [rating for row in ratings for rating in row[turn : turn + 1] if rating is not None]


def _values(mean: Mean | None) -> dict[str, float] | None:
    return None if mean is None else mean._asdict()
