"""The trainer: folds the stream of a recipe through its model, yields events and leaves checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from threading import Event as Stop
from typing import Any

import torch
from torch import Tensor, nn

from synthe_core.data.prepare import Packed
from synthe_core.data.stream import Batch, Stream, windows
from synthe_core.errors import Interrupted, WorkError
from synthe_core.events import Event, Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.hardware.probe import Hardware
from synthe_core.layers.learner import apply_buffer_updates
from synthe_core.model.classifier import Classifier, Model
from synthe_core.model.parts import parts
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import weights
from synthe_core.storage.run_folder import RunFolder
from synthe_core.training import schedule
from synthe_core.training.average import Average
from synthe_core.training.gradients import Outcome, accumulate, out_of_memory
from synthe_core.training.loggers import open_loggers
from synthe_core.training.meter import Meter
from synthe_core.training.non_finite import first_bad
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.position import Position
from synthe_core.training.sample import write_sample
from synthe_core.training.settings import Settings
from synthe_core.training.snapshot import Snapshot
from synthe_core.training.validation import ClassScore, Score

VALIDATION_SHARE = 0.1  # of a budget of time, for all validations together
SHOW_EVERY = 0.2  # seconds between progress events
LOG_SECONDS = 10.0  # a metric comes at least this often


class Trainer:
    """One session of training. `snapshot` is everything that a checkpoint must bring back."""

    def __init__(
        self, recipe: Recipe, packed: Packed, snapshot: Snapshot, run: RunFolder, hardware: Hardware, stop: Stop
    ) -> None:
        self.recipe, self.spec, self.packed, self.run, self.stop = recipe, recipe.train, packed, run, stop
        self.hardware = hardware
        self.snapshot = snapshot
        self.model: Model = snapshot.model
        self.optimizer: Optimizer = snapshot.optimizer
        self.average: Average | None = snapshot.average
        self.position: Position = snapshot.position
        self.settings: Settings = snapshot.settings
        self.stream: Stream = snapshot.stream
        train = [source.train for source in packed.train]
        bytes_per_token = sum(s.bytes for s in train) / sum(s.tokens for s in train)
        self.meter = Meter(self.settings, bytes_per_token if snapshot.labelled is None else None)
        self.validation_cost: float | None = None
        self.step_seconds = 0.0
        self.saved = self.position.mark()
        self.loggers = open_loggers(recipe, run.path, self.position.step)
        self.flops: dict[int, float] = {}
        self.phase = schedule.Phase(0, 0, frozenset(), frozenset())
        self.waiting: list[nn.Parameter] = []  # while parts that have just joined are trained alone: all the others
        self.fixed: set[int] = set()  # and the buffers of those, by id

    def run_to_the_end(self) -> Iterator[Event]:
        """Trains until the budget is spent; raises Interrupted where it is told to stop, after saving."""
        self.position.begin()
        began, before = time.monotonic(), self.fraction()
        logged = shown = began
        bad = 0
        upcoming = self.stream.next(self.spec.batch)
        yield self._progress(began, before)
        while True:
            fraction = self.fraction()
            if self.position.step and math.floor(fraction * self.spec.validations) > self.position.validated:
                yield from self._validation(fraction)
            elif self.position.step > self.saved.step and self.position.since(self.saved, self.spec.save_every):
                yield from self._save()
            if fraction >= 1 and self.position.step:
                break
            if self.stop.is_set():
                yield from self._interrupted()
            batch, cursor = upcoming, self.stream.cursor()
            yield from self._enter(schedule.phase(self.spec, fraction, self.recipe.data.sequence))
            length = self.phase.sequence
            start = time.perf_counter()
            outcome = yield from self._gradient(batch, length)
            for parameter in self.waiting:
                parameter.grad = None  # no optimizer touches it: neither its weights nor their momentum change
            norm = torch.nn.utils.get_total_norm(self._gradients())
            upcoming = self.stream.next(self.spec.batch)  # while the device is busy
            self.snapshot.cursor = cursor
            self.snapshot.metrics = {}
            if not math.isfinite(size := float(norm + outcome.nats * 0)):  # the one wait for the device in a step
                bad += 1
                yield from self._skip(batch, length, bad)
                continue
            bad = 0
            rate = schedule.rate(self.spec, fraction)
            self._apply(size, rate)
            if self.snapshot.base is None:  # what an adapter is trained over stays as it is
                apply_buffer_updates(
                    (buffer, value) for buffer, value in outcome.buffer_updates if id(buffer) not in self.fixed
                )
            self.snapshot.carried = outcome.carried
            self.position.step += 1
            self.position.tokens += outcome.tokens
            self.step_seconds = time.perf_counter() - start
            self.meter.add(outcome, self.step_seconds, self._flops(length))
            now = time.monotonic()
            if self.position.step % self.spec.log_every == 0 or self.position.step == 1 or now - logged > LOG_SECONDS:
                logged = now
                yield self._metric("train", self.meter.read() | {"lr": self.spec.lr * rate, "grad_norm": size})
            if now - shown > SHOW_EVERY:
                shown = now
                yield self._progress(began, before)
        yield self._progress(began, before)
        yield self.result()

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()
        self.run.close()

    def result(self) -> Result:
        """The end: the run folder and its figures."""
        values: dict[str, object] = {
            "steps": self.position.step,
            "tokens": self.position.tokens,
            "seconds": round(self.position.seconds, 1),
        }
        return Result(values | dict(self.snapshot.metrics), self.run.path)

    def fraction(self) -> float:
        return self.position.fraction(self.spec.budget, self._reserve())

    # One step

    def _enter(self, phase: schedule.Phase) -> Iterator[Event]:
        """Goes over to a phase of training, where it is another, and tells of it."""
        if phase == self.phase:
            return
        self.phase = phase
        self.model.leave_out(phase.without)
        self.snapshot.stage = phase.stage
        learning = tuple(prefix for name in phase.alone for prefix in parts(self.model.spec)[name].prefixes)
        waits = [name for name in weights(self.model) if phase.alone and not name.startswith(learning)]
        tensors = self.model.state_dict(keep_vars=True)
        self.waiting = [tensors[name] for name in waits if isinstance(tensors[name], nn.Parameter)]
        self.fixed = {id(tensors[name]) for name in waits}
        if not self.spec.stages:
            return
        told = f"stage {phase.stage} of {len(self.spec.stages) + 1}: sequences of {phase.sequence} tokens"
        told += f", without {', '.join(sorted(phase.without))}" if phase.without else ""
        told += f"; first, {', '.join(sorted(phase.alone))} alone" if phase.alone else ""
        yield Notice(told)

    def _gradient(self, batch: Batch, length: int) -> Generator[Event, None, Outcome]:
        """The gradient of a batch; where memory runs out, again in passes half as large."""
        while True:
            self.optimizer.zero_grad()
            try:
                return accumulate(
                    self.model,
                    batch,
                    self.settings,
                    sequence=length,
                    carry=self.spec.carry,
                    carried=self.snapshot.carried,
                )
            except (RuntimeError, MemoryError) as error:
                rows = self.settings.micro_batch
                if not out_of_memory(error):
                    raise
                if rows == 1:
                    raise WorkError(
                        f"out of memory with one sequence of {self.recipe.data.sequence} tokens",
                        "set runtime.recompute=true, or a shorter data.sequence or a smaller model",
                    ) from error
            self.optimizer.zero_grad()
            if self.settings.device.type == "cuda":
                torch.cuda.empty_cache()
            self.settings.micro_batch = -(-rows // 2)
            yield Notice(f"out of memory: micro-batch {rows} -> {self.settings.micro_batch}", "warning")

    def _apply(self, norm: float, rate: float) -> None:
        if self.spec.clip is not None and norm > self.spec.clip:
            torch._foreach_mul_(self._gradients(), self.spec.clip / norm)
        self.optimizer.step(rate)
        if self.average is not None:
            self.average.update(self.position.step + 1)

    def _gradients(self) -> list[Tensor]:
        return [p.grad for p in self.optimizer.parameters if p.grad is not None]

    def _skip(self, batch: Batch, length: int, bad: int) -> Iterator[Event]:
        """A step that is not taken: weights, schedule and budget stay, and the next batch is another."""
        culprit = first_bad(self.model, batch, self.settings, length, self.snapshot.carried)
        what = f"step {self.position.step + 1}: {culprit} is not finite"
        self.optimizer.zero_grad()
        self.snapshot.carried = None  # a state may be what went bad: rows begin anew
        if bad < self.spec.patience:
            yield Notice(f"{what}; the step is skipped ({bad} in a row)", "warning")
            return
        hint = "lower train.lr or train.clip, or use runtime.precision=float32"
        if self.position.step > self.saved.step:
            yield from self._save()
        if self.position.step and self.position.step == self.saved.step:
            hint = f"the last good weights are saved; {hint}"
        raise WorkError(f"{what}, {bad} steps in a row", hint)

    def _flops(self, length: int) -> float:
        if length not in self.flops:
            self.flops[length] = self.model.flops(length)
        return self.flops[length]

    # Between steps

    def _reserve(self) -> float:
        """Seconds to keep for the last validation, so that a budget of time is the time until the result.

        Half a step is kept too: the last one ends as often before the budget as after it.
        """
        ahead = self.validation_cost
        if ahead is None:
            rate, wanted = self.meter.tokens_per_second, self.spec.validation_tokens
            ahead = 0.0 if rate is None or not self._held_out() else min(wanted / (3 * rate), self._allowed())
        return ahead + self.step_seconds / 2

    def _allowed(self) -> float:
        """Seconds that one validation may take of a budget of time."""
        budget = self.spec.budget
        return VALIDATION_SHARE * budget.amount / self.spec.validations if budget.unit == "seconds" else math.inf

    def _validation(self, fraction: float) -> Iterator[Event]:
        """Validates, writes a sample, saves: what happens evenly over the budget, at its end for the last time."""
        start = time.monotonic()
        if self._held_out() and not (yield from self._validate()):
            yield from self._interrupted()  # it is done again when training goes on
        if self.spec.sample is not None:
            yield Sample(self.position.step, self._sample(self.spec.sample))
        self.position.validated = math.floor(fraction * self.spec.validations)
        yield from self._save()
        self.validation_cost = time.monotonic() - start

    def _validate(self) -> Generator[Event, None, bool]:
        if self.snapshot.windows is None:
            self.snapshot.windows = self._plan()
            full = min(self._held_out(), self.spec.validation_tokens // self.recipe.data.sequence)
            if self.snapshot.windows < full:
                yield Notice(
                    f"validation reads {self.snapshot.windows} windows, not {full}: "
                    f"all validations together may take {VALIDATION_SHARE:.0%} of the time"
                )
        self.model.eval()
        done = 0
        length = self.recipe.data.sequence
        rows = max(self.settings.micro_batch, 1024 // length)  # short sequences, many at a time
        score: Any
        text: Iterator[Any]
        if self.snapshot.labelled is None:
            score, text = Score(), windows(self.packed.validation, length, self.snapshot.windows, rows)
        else:
            score, text = ClassScore(), self.snapshot.labelled.windows(self.snapshot.windows, rows)
        with self.snapshot.evaluated():
            for window in text:
                score.add(self.model, window, self.settings.context)
                done += window.targets.shape[0]
                yield Progress("validate", done, self.snapshot.windows, "windows")
                if self.stop.is_set():
                    break
        self.model.train()
        if self.stop.is_set():
            return False
        values = score.values()
        self.snapshot.metrics = values
        yield self._metric("validation", values)
        return True

    def _plan(self) -> int:
        """How many windows a validation reads: those asked for, or those that a budget of time allows."""
        length = min(self.recipe.data.sequence, self.packed.validation.tokens - 1)
        wanted = max(1, self.spec.validation_tokens // length)
        rate = self.meter.tokens_per_second
        if rate is None or not math.isfinite(self._allowed()):
            return min(wanted, self._held_out())
        allowed = max(1, int(3 * rate * self._allowed() / length))
        return min(wanted, allowed, self._held_out())

    def _held_out(self) -> int:
        """How many windows or passages there are to validate on."""
        if self.snapshot.labelled is not None:
            return len(self.snapshot.labelled.validation.starts)
        tokens = self.packed.validation.tokens - 1
        return max(0, tokens) // max(1, min(self.recipe.data.sequence, tokens))

    def _sample(self, prompt: str) -> str:
        assert not isinstance(self.model, Classifier)  # the recipe has seen to it
        self.model.eval()
        try:
            with self.snapshot.evaluated():
                return write_sample(
                    self.model, self.packed.tokenizer, prompt, self.spec.sample_tokens, self.settings, self.recipe.seed
                )
        finally:
            self.model.train()

    def _save(self) -> Iterator[Event]:
        if not self.snapshot.finite():
            yield Notice(f"step {self.position.step}: the weights are not finite, and are not saved", "warning")
            return
        path = self.run.checkpoint(self.position.step)
        self.snapshot.save(path, self.hardware)
        self.run.prune(self.spec.keep)
        self.saved = self.position.mark()
        yield Saved(path, self.position.step)

    def _interrupted(self) -> Iterator[Event]:
        step = self.position.step
        if step > self.saved.step:
            yield from self._save()
        saved = "; saved" if step and step == self.saved.step else ""
        raise Interrupted(f"stopped at step {step}{saved}", f"go on with: synthe train {self.run.path} --resume")

    def _metric(self, phase: str, values: dict[str, float]) -> Metric:
        step = self.position.step
        values = values | {"fraction": self.fraction(), "seconds": self.position.seconds}
        if self.spec.stages:
            values["stage"] = self.snapshot.stage
        self.run.record(step, phase, values)
        for logger in self.loggers:
            logger.log(step, phase, values)
        return Metric(step, phase, values)

    def _progress(self, began: float, before: float) -> Progress:
        budget, fraction = self.spec.budget, self.fraction()
        position = self.position
        spent = {"tokens": position.tokens, "steps": position.step, "seconds": position.seconds}[budget.unit]
        if budget.unit == "seconds":
            left: float | None = budget.amount - spent
        else:
            gained = fraction - before
            left = (1 - fraction) * (time.monotonic() - began) / gained if gained > 0 else None
        return Progress("train", min(spent, budget.amount), budget.amount, budget.unit, left)
