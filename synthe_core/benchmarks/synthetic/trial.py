"""One trial: a model trained on a task from scratch and tested on every slice of it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import RandomState
from pydantic import Field
from torch import Tensor

import synthe_core
from synthe_core import state as states
from synthe_core.errors import WorkError
from synthe_core.events import Event, Metric, Notice, Progress, Result
from synthe_core.hardware.probe import probe
from synthe_core.layers.learner import Spec, apply_buffer_updates
from synthe_core.model.language_model import LanguageModel, Loss, ModelSpec
from synthe_core.ops.dispatch import OPS
from synthe_core.recipe.schema import TrainSpec
from synthe_core.tasks import TASKS
from synthe_core.tasks.task import UNSCORED, Preset, PresetName, Share
from synthe_core.training import schedule
from synthe_core.training.optimizer import Optimizer

TEST_TOKENS = 65_536  # a test pass
KNOWN, RECENT = 0.8, 10  # a level is known when right answers get this probability over about so many steps
FIRST_TEST_SEED = 1_000_003  # test sequences never share a stream with training's


class Trial(Spec):
    """All that decides a trial's numbers. `settings` overrule the task's keys in every share of the preset."""

    task: str
    settings: dict[str, Any] = Field({}, description="keys of the task, overruled")
    preset: PresetName = "quick"
    model: ModelSpec
    label: str = Field("", description="what tables call the model")
    batch: int = Field(64, ge=1)
    epochs: int = Field(1, ge=1)
    steps: int | None = Field(None, ge=1, description="at most this many; the schedule fits them")
    lr: float = Field(3e-3, gt=0)
    weight_decay: float = Field(0.1, ge=0)
    optimizer: Literal["adamw", "muon"] = "adamw"
    warmup: float = Field(0.05, ge=0, lt=1)
    stop_at: float = Field(0.99, gt=0, le=1, description="test accuracy that ends a trial early")
    tests: int = Field(8, ge=1, description="how often to test, evenly over the steps")
    seed: int = 0

    def digest(self) -> str:
        """A short name for this trial, the same on every machine: another preset of that name is another trial, and
        what the model is called does not count."""
        preset = self.shares()
        sizes = [
            [(share.config.model_dump(mode="json"), share.examples) for share in group]
            for group in (preset.train, preset.test)
        ]
        text = json.dumps([self.model_dump(mode="json", exclude={"label"}), sizes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def shares(self) -> Preset:
        """The preset with the settings put in; InputError where they do not go together."""
        task = TASKS[self.task]
        preset = task.preset(self.preset)
        train, test = ([_overruled(task, s, self.settings) for s in group] for group in (preset.train, preset.test))
        once = {share.config.model_dump_json(): share for share in reversed(test)}  # settings may make some equal
        return preset._replace(train=train, test=list(once.values())[::-1])

    def check(self) -> None:
        """InputError where the sizes of the task or of the model do not go together. Allocates nothing."""
        with torch.device("meta"):
            LanguageModel(self.model, _vocab(self.task, self.shares()))


def _vocab(task: str, preset: Preset) -> int:
    return max(TASKS[task](share.config).vocab for share in (*preset.train, *preset.test))


def _overruled(task: Any, share: Share, settings: dict[str, Any]) -> Share:
    config = task.Config.model_validate({**share.config.model_dump(), **settings})
    task(config)  # impossible sizes are told here
    return Share(config, share.examples)


def run(trial: Trial, device: str = "cpu", name: str | None = None) -> Iterator[Event]:
    """Trains and tests; yields Progress and Metric events of that `name`, and last a Result with the whole record.

    Every batch is drawn anew: an epoch is as many examples as the preset names, never the same ones again. A task that
    has levels is trained on the next once the one before is known (curricula by competence: Platanios et al. 2019).
    """
    began = time.monotonic()
    for op in OPS.values():
        op.used.clear()  # by an earlier trial of this process
    name, preset = name or trial.label or trial.task, trial.shares()
    tasks, tests = ([TASKS[trial.task](share.config) for share in group] for group in (preset.train, preset.test))
    rng = RandomState(trial.seed)
    order = _order(trial, preset, rng)
    held_out = [
        task.batch(share.examples, RandomState(FIRST_TEST_SEED + trial.seed))
        for task, share in zip(tests, preset.test, strict=True)
    ]
    torch.manual_seed(trial.seed)
    model = LanguageModel(trial.model, _vocab(trial.task, preset)).to(device)
    spec = TrainSpec(
        optimizer=trial.optimizer, lr=trial.lr, weight_decay=trial.weight_decay, warmup=trial.warmup, schedule="cosine"
    )
    optimizer = Optimizer(model, spec)
    tokens, scores = 0, {"accuracy": 0.0}
    climb = Climb(max(task.levels for task in tasks))
    yield Progress(name, 0, len(order), "steps")
    for step, which in enumerate(order, start=1):
        examples = tasks[which].at(climb.level).batch(trial.batch, rng)
        loss, _ = model.loss(_tensor(examples.inputs, device), _tensor(examples.targets, device))
        optimizer.zero_grad()
        loss.objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(schedule.rate(spec, (step - 1) / len(order)))
        apply_buffer_updates(loss.buffer_updates)
        tokens += examples.inputs.size
        climb.go_on(loss)
        if step % 10 == 0:
            spent = time.monotonic() - began
            yield Progress(name, step, len(order), "steps", spent / step * (len(order) - step))
        if step * trial.tests // len(order) > (step - 1) * trial.tests // len(order):
            nats = float(loss.total.detach() / loss.scored)
            if not math.isfinite(nats):
                raise WorkError(f"{name}: the loss is not finite at step {step}", "lower lr")
            scores = test(model, preset.test, held_out, device)
            told = {"loss": nats, "accuracy": scores["accuracy"]} | ({"level": climb.level} if climb.levels else {})
            yield Metric(step, "validation", told, name)
            if scores["accuracy"] >= trial.stop_at:
                break
    if not climb.over:
        yield Notice(f"{name}: training got to level {climb.level} of {climb.levels}; tests are of the last", "warning")
    record = _record(trial, model, preset, scores, step, tokens, time.monotonic() - began, device)
    yield Result(record | ({"level": climb.level, "levels": climb.levels} if climb.levels else {}))


@dataclass
class Climb:
    """Through the levels of a task: the next follows once this one is known, and at the earliest after RECENT steps."""

    levels: int
    level: int = 0
    known: float = 0.0  # the probability of right answers, geometric within a step, a running mean over steps
    since: int = 0

    @property
    def over(self) -> bool:
        return self.level == self.levels

    def go_on(self, loss: Loss) -> None:
        """After a training step of that loss."""
        if self.over:
            return
        self.known += (float((-loss.total.detach() / loss.scored).exp()) - self.known) / RECENT
        self.since += 1
        if self.known > KNOWN and self.since >= RECENT:
            self.level, self.since = self.level + 1, 0


def _order(trial: Trial, preset: Preset, rng: RandomState) -> list[int]:
    """Which share of the preset each step trains on: mixed at random, as often as their examples ask for."""
    batches = [max(1, share.examples // trial.batch) for share in preset.train]
    order = [
        int(which) for _ in range(trial.epochs) for which in rng.permutation(np.repeat(range(len(batches)), batches))
    ]
    return order[: trial.steps]


def _tensor(values: np.ndarray[Any, Any], device: str) -> Tensor:
    return torch.from_numpy(values).to(device)


@torch.no_grad()
def test(model: LanguageModel, shares: list[Share], held_out: list[Any], device: str) -> dict[str, Any]:
    """Accuracy over all scored tokens, of each share by its settings, and of each value of the examples' own slices."""
    model.eval()
    rows: list[tuple[dict[str, Any], int, int]] = []
    by_slice: dict[tuple[str, int], tuple[int, int]] = {}
    for share, examples in zip(shares, held_out, strict=True):
        right, scored = [], examples.targets != UNSCORED
        many = max(1, TEST_TOKENS // examples.inputs.shape[1])
        for start in range(0, len(examples.inputs), many):
            piece = slice(start, start + many)
            guesses = _guesses(model, _tensor(examples.inputs[piece], device), scored[piece])
            right.append(guesses == examples.targets[piece][scored[piece]])
        correct = np.concatenate(right)
        rows.append((share.config.model_dump(mode="json"), int(correct.sum()), int(scored.sum())))
        for name, values in examples.slices.items():
            for value in np.unique(values[scored]):
                chosen = correct[values[scored] == value]
                hits, count = by_slice.get((name, int(value)), (0, 0))
                by_slice[name, int(value)] = (hits + int(chosen.sum()), count + len(chosen))
    model.train()
    return {
        "accuracy": sum(hits for _, hits, _ in rows) / sum(count for _, _, count in rows),
        "shares": [{"settings": settings, "accuracy": hits / count} for settings, hits, count in rows],
        "slices": [{name: value, "accuracy": hits / count} for (name, value), (hits, count) in by_slice.items()],
    }


def _guesses(model: LanguageModel, inputs: Tensor, scored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The likeliest token at each scored place: the head reads those only."""
    hidden, _, _ = model.hidden(inputs)
    places = torch.from_numpy(scored).to(hidden.device)
    return model.head(hidden[places]).argmax(-1).cpu().numpy()


def _record(
    trial: Trial,
    model: LanguageModel,
    preset: Preset,
    scores: dict[str, Any],
    steps: int,
    tokens: int,
    seconds: float,
    device: str,
) -> dict[str, Any]:
    """Everything that says what was measured, and on what."""
    task = TASKS[trial.task]
    hardware = probe()
    return {
        "trial": trial.model_dump(mode="json"),
        "digest": trial.digest(),
        "version": synthe_core.__version__,
        "accuracy": scores["accuracy"],
        "chance": float(np.mean([task(share.config).chance for share in preset.test])),
        "axis": task.axis,
        "shares": scores["shares"],
        "slices": scores["slices"],
        "ended": "solved" if scores["accuracy"] >= trial.stop_at else "budget",
        "steps": steps,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "parameters": model.parameter_count(),
        "state_bytes": _state_bytes(model, max(share.config.length for share in preset.test), device),
        "kernels": {name: sorted(op.used) for name, op in OPS.items() if op.used},
        "hardware": hardware.gpu.name if hardware.gpu and device == "cuda" else hardware.processor,
        "device": device,
        "threads": torch.get_num_threads(),  # of a CPU's sums, whose last digits depend on them
        "torch": torch.__version__,
    }


@torch.no_grad()
def _state_bytes(model: LanguageModel, length: int, device: str) -> int:
    """Bytes of what the learners remember of one sequence of `length` tokens, counted on a real state."""
    _, state = model(torch.zeros(1, length, dtype=torch.int64, device=device))
    return states.nbytes(state.blocks)
