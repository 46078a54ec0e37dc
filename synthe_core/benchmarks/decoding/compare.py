"""Candidates in turns: medians of their times, and of their ratios to the first one, turn by turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import torch

from synthe_core.benchmarks.decoding.llama_server import LlamaServer
from synthe_core.benchmarks.decoding.own import EngineCandidate, ServedCandidate, settings_of
from synthe_core.benchmarks.decoding.transformers_generate import TransformersGenerate
from synthe_core.benchmarks.decoding.workload import PREFILL_TOKENS, Candidate
from synthe_core.errors import InputError, unknown
from synthe_core.events import Event, Measurement, Notice, Progress
from synthe_core.interop.load import load_model

PEERS = ("llama.cpp", "transformers")
FEWEST_TOKENS = 16
MODEL = "model"  # the name of ours in requests


@dataclass(frozen=True)
class DecodingComparison:
    """model: a checkpoint or GGUF file. against: of PEERS. rows: the numbers of texts at once; tokens: of each text.
    weights: of ours. threads: of every candidate, None for torch's. llama_server: the program, None for that on the
    PATH."""

    model: Path
    against: Sequence[str] = PEERS
    rows: Sequence[int] = (1, 8, 32)
    turns: int = 7
    tokens: int = 48
    weights: str = "auto"
    threads: int | None = None
    llama_server: Path | None = None

    def check(self) -> None:
        """InputError for what cannot be measured."""
        for name in self.against:
            if name not in PEERS:
                raise unknown("program", name, PEERS)
        if self.tokens < FEWEST_TOKENS:
            raise InputError(f"--tokens {self.tokens}: steps are timed over at least {FEWEST_TOKENS}")
        if not self.rows or min(self.rows) < 1:
            raise InputError("the numbers of texts at once are 1 or more", "for example --rows 1,8,32")


@dataclass
class _Case:
    """One row of the table: a name, and what every candidate's time divides."""

    name: str
    rows: int
    tokens: int
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def measure(self, candidate: Candidate, tokens: int) -> None:
        seconds = candidate.step(self.rows, tokens) if self.rows else candidate.prefill()
        self.seconds.setdefault(candidate.name, []).append(seconds)

    def measurements(self) -> Iterator[Measurement]:
        first = next(iter(self.seconds.values()))
        for name, each in self.seconds.items():
            ratios = [mine / own for mine, own in zip(each, first, strict=True)]
            median = statistics.median(each)
            figures = {
                "ms": 1e3 * median, "tokens_per_s": self.tokens / median, "ratio": statistics.median(ratios),
                "least_ratio": min(ratios), "greatest_ratio": max(ratios),
            }  # fmt: skip
            yield Measurement(self.name, {"candidate": name, **figures})


def compare_decoding(options: DecodingComparison) -> Iterator[Event]:
    """Yields a Notice for each candidate's settings and for each that is not there, and a Measurement for each case and
    candidate: milliseconds of a step, tokens a second of all texts, and its time divided by our engine's."""
    options.check()
    threads_before = torch.get_num_threads()
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, threads_before)
        torch.set_num_threads(options.threads or threads_before)
        yield Progress("loading", 0)
        model = load_model(options.model, MODEL, weights=options.weights)
        own = settings_of(model)
        candidates: list[Candidate] = [EngineCandidate(model, own), ServedCandidate(model, own)]
        for name in options.against:
            try:
                candidates.append(_peer(name, options, model.vocab))
            except InputError as error:
                yield Notice(f"not measured: {error}" + (f" ({error.hint})" if error.hint else ""), "warning")
        for each in candidates:
            stack.callback(each.close)
            settings = ", ".join(f"{key} {value}" for key, value in each.settings.items())
            yield Notice(f"{each.name}: {settings}")
        yield from _turns(options, candidates)


def _peer(name: str, options: DecodingComparison, vocab: int) -> Candidate:
    threads = torch.get_num_threads()
    if name == "llama.cpp":
        return LlamaServer(options.model, vocab, threads, options.llama_server)
    return TransformersGenerate(options.model, vocab, threads)


def _turns(options: DecodingComparison, candidates: Sequence[Candidate]) -> Iterator[Event]:
    """Every candidate once to warm up, then `turns` times in alternation. The prefill is timed with the first number of
    texts, when each server has the room of one."""
    total = len(options.rows) * (options.turns + 1)
    begun, done = time.monotonic(), 0
    for number, rows in enumerate(options.rows):
        cases = [_Case(f"decoding {rows} text{'s' * (rows > 1)}", rows, rows)]
        if number == 0:
            cases.append(_Case(f"prefill of {PREFILL_TOKENS} tokens", 0, PREFILL_TOKENS))
        for candidate in candidates:
            candidate.prepare(rows)
            for case in cases:
                _Case(case.name, case.rows, case.tokens).measure(candidate, FEWEST_TOKENS)
        done += 1
        for _ in range(options.turns):
            spent = time.monotonic() - begun
            yield Progress(cases[0].name, done, total, "turns", spent / done * (total - done))
            for candidate in candidates:
                for case in cases:
                    case.measure(candidate, options.tokens)
            done += 1
        for case in cases:
            yield from case.measurements()
    yield Progress(cases[0].name, total, total, "turns", 0.0)
