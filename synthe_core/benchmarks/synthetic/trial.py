"""One trial: a model trained on a task from scratch and tested on every slice of it."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.random import RandomState
from pydantic import Field
from torch import Tensor

import synthe_core
from synthe_core import state as states
from synthe_core.data.stream import Batch
from synthe_core.errors import WorkError
from synthe_core.events import Event, Metric, Notice, Progress, Result
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.layers.learner import Spec
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.dispatch import OPS
from synthe_core.recipe.schema import TrainSpec
from synthe_core.tasks import TASKS
from synthe_core.tasks.task import UNSCORED, Examples, Preset, PresetName, Share
from synthe_core.training.objectives import objective_for
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.state import TrainState
from synthe_core.training.step import StepResult, train_step

TEST_TOKENS = 65_536  # of a test pass
LEARNED, WINDOW = 0.8, 10  # a level is learned when right answers get this probability over about so many steps
FIRST_TEST_SEED = 1_000_003  # test sequences never share a stream with training's


class Trial(Spec):
    """What determines a trial's numbers. `settings` override the task's keys in every share of the preset."""

    task: str
    settings: dict[str, Any] = Field({}, description="keys of the task, overridden")
    preset: PresetName = "quick"
    model: ModelSpec
    label: str = Field("", description="the name of the model in tables")
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
        the label does not count."""
        preset = self.shares()
        sizes = [
            [(share.config.model_dump(mode="json"), share.examples) for share in group]
            for group in (preset.train, preset.test)
        ]
        text = json.dumps([self.model_dump(mode="json", exclude={"label"}), sizes], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def shares(self) -> Preset:
        """The preset with the settings put in; InputError if they are inconsistent."""
        task = TASKS[self.task]
        preset = task.preset(self.preset)
        train, test = ([_with_settings(task, s, self.settings) for s in group] for group in (preset.train, preset.test))
        once = {share.config.model_dump_json(): share for share in reversed(test)}  # settings may make two equal
        return preset._replace(train=train, test=list(once.values())[::-1])

    def check(self) -> None:
        """InputError if the sizes of the task or of the model are inconsistent. Allocates nothing."""
        with torch.device("meta"):
            LanguageModel(self.model, _vocab(self.task, self.shares()))


def _vocab(task: str, preset: Preset) -> int:
    return max(TASKS[task](share.config).vocab for share in (*preset.train, *preset.test))


def _with_settings(task: Any, share: Share, settings: dict[str, Any]) -> Share:
    config = task.Config.model_validate({**share.config.model_dump(), **settings})
    task(config)  # an error for impossible sizes
    return Share(config, share.examples)


def run(trial: Trial, device: str = "cpu", name: str | None = None) -> Iterator[Event]:
    """Trains and tests; yields Progress and Metric events of that `name`, and last a Result with the whole record.

    Every batch is new: an epoch is as many examples as the preset names, none of them twice. A task with
    levels is trained on the next once the one before is learned (curricula by competence: Platanios et al. 2019).
    Raises WorkError if a loss or gradient is not finite.
    """
    started = time.monotonic()
    for op in OPS.values():
        op.used.clear()  # of an earlier trial in this process
    name, preset = name or trial.label or trial.task, trial.shares()
    rng = RandomState(trial.seed)
    order = _order(trial, preset, rng)
    tests = _test_sets(trial, preset)
    torch.manual_seed(trial.seed)
    model = LanguageModel(trial.model, _vocab(trial.task, preset)).to(device)
    state = _initial_state(trial, model)
    tasks = [TASKS[trial.task](share.config) for share in preset.train]
    curriculum = Curriculum(max(task.levels for task in tasks))
    scores: dict[str, Any] = {"accuracy": 0.0}
    yield Progress(name, 0, len(order), "steps")
    for step, which in enumerate(order, start=1):
        state.fraction = (step - 1) / len(order)
        result = train_step(state, _batch(tasks[which].at_level(curriculum.level).batch(trial.batch, rng)))
        if result.skipped:
            what = "gradient" if math.isfinite(float(result.loss)) else "loss"
            raise WorkError(f"{name}: the {what} is not finite at step {step}", "lower lr")
        curriculum.update(result)
        if step % 10 == 0:
            spent = time.monotonic() - started
            yield Progress(name, step, len(order), "steps", spent / step * (len(order) - step))
        if step * trial.tests // len(order) > (step - 1) * trial.tests // len(order):
            scores = test(model, preset.test, tests, device)
            figures = {"loss": float(result.loss), "accuracy": scores["accuracy"]} | curriculum.figures()
            yield Metric(step, "validation", figures, name)
            if scores["accuracy"] >= trial.stop_at:
                break
    if not curriculum.finished:
        reached = f"level {curriculum.level} of {curriculum.levels}"
        yield Notice(f"{name}: training got to {reached}; tests are of the last", "warning")
    yield Result(_record(trial, preset, model, state, scores, time.monotonic() - started) | curriculum.record())


def _initial_state(trial: Trial, model: LanguageModel) -> TrainState:
    spec = TrainSpec(
        optimizer=trial.optimizer, lr=trial.lr, weight_decay=trial.weight_decay, warmup=trial.warmup, schedule="cosine"
    )
    settings = Settings(ExecutionContext(model.embedding.weight.device), trial.batch)
    return TrainState(model, objective_for(model), Optimizer(model, spec), spec, settings)


def _test_sets(trial: Trial, preset: Preset) -> list[Examples]:
    return [
        TASKS[trial.task](share.config).batch(share.examples, RandomState(FIRST_TEST_SEED + trial.seed))
        for share in preset.test
    ]


def _batch(examples: Examples) -> Batch:
    return Batch(torch.from_numpy(examples.inputs), torch.from_numpy(examples.targets))


@dataclass
class Curriculum:
    """The levels of a task, one after another: the next follows once this one is learned, at the earliest after WINDOW
    steps.

    probability: of the right answers: the geometric mean within a step, a running mean over steps.
    """

    levels: int
    level: int = 0
    probability: float = 0.0
    steps_at_level: int = 0

    @property
    def finished(self) -> bool:
        return self.level == self.levels

    def update(self, result: StepResult) -> None:
        """Counts a training step; goes on to the next level if this one is learned."""
        if self.finished:
            return
        self.probability += (float((-result.loss).exp()) - self.probability) / WINDOW
        self.steps_at_level += 1
        if self.probability > LEARNED and self.steps_at_level >= WINDOW:
            self.level, self.steps_at_level = self.level + 1, 0

    def figures(self) -> dict[str, float]:
        return {"level": self.level} if self.levels else {}

    def record(self) -> dict[str, int]:
        return {"level": self.level, "levels": self.levels} if self.levels else {}


def _order(trial: Trial, preset: Preset, rng: RandomState) -> list[int]:
    """Which share of the preset each step trains on: in random order, each in proportion to its examples."""
    batches = [max(1, share.examples // trial.batch) for share in preset.train]
    order = [
        int(which) for _ in range(trial.epochs) for which in rng.permutation(np.repeat(range(len(batches)), batches))
    ]
    return order[: trial.steps]


@torch.no_grad()
def test(model: LanguageModel, shares: Sequence[Share], test_sets: Sequence[Examples], device: str) -> dict[str, Any]:
    """Accuracy over all scored tokens, of each share, and of each value of the examples' slices."""
    model.eval()
    by_share: list[tuple[dict[str, Any], int, int]] = []
    by_slice: dict[tuple[str, int], tuple[int, int]] = {}
    for share, examples in zip(shares, test_sets, strict=True):
        parts, scored = [], examples.targets != UNSCORED
        batch = max(1, TEST_TOKENS // examples.inputs.shape[1])
        for start in range(0, len(examples.inputs), batch):
            rows = slice(start, start + batch)
            predictions = _predictions(model, torch.from_numpy(examples.inputs[rows]).to(device), scored[rows])
            parts.append(predictions == examples.targets[rows][scored[rows]])
        correct = np.concatenate(parts)
        by_share.append((share.config.model_dump(mode="json"), int(correct.sum()), int(scored.sum())))
        for name, values in examples.slices.items():
            for value in np.unique(values[scored]):
                chosen = correct[values[scored] == value]
                hits, count = by_slice.get((name, int(value)), (0, 0))
                by_slice[name, int(value)] = (hits + int(chosen.sum()), count + len(chosen))
    model.train()
    return {
        "accuracy": sum(hits for _, hits, _ in by_share) / sum(count for _, _, count in by_share),
        "shares": [{"settings": settings, "accuracy": hits / count} for settings, hits, count in by_share],
        "slices": [{name: value, "accuracy": hits / count} for (name, value), (hits, count) in by_slice.items()],
    }


def _predictions(model: LanguageModel, inputs: Tensor, scored: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The most likely token at each scored position. The head runs at those only."""
    hidden, _, _ = model.hidden(inputs)
    positions = torch.from_numpy(scored).to(hidden.device)
    return model.head(hidden[positions]).argmax(-1).cpu().numpy()


def _record(
    trial: Trial, preset: Preset, model: LanguageModel, state: TrainState, scores: dict[str, Any], seconds: float
) -> dict[str, Any]:
    """The record: settings, results, and what they were measured on."""
    task = TASKS[trial.task]
    hardware, device = probe(), state.settings.device.type
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
        "steps": state.step,
        "tokens": state.tokens,
        "seconds": round(seconds, 1),
        "parameters": model.parameter_count(),
        "state_bytes": _state_bytes(model, max(share.config.length for share in preset.test)),
        "kernels": {name: sorted(op.used) for name, op in OPS.items() if op.used},
        "hardware": hardware.gpu.name if hardware.gpu and device == "cuda" else hardware.processor,
        "device": device,
        "threads": torch.get_num_threads(),  # the last digits of a CPU's sums depend on them
        "torch": torch.__version__,
    }


@torch.no_grad()
def _state_bytes(model: LanguageModel, length: int) -> int:
    """Bytes of the learners' state after one sequence of `length` tokens, counted on a real state."""
    _, state = model(torch.zeros(1, length, dtype=torch.int64, device=model.embedding.weight.device))
    return states.nbytes(state.blocks)
