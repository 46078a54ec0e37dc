"""The trainer: a loop of training steps that logs, validates and saves."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterable, Iterator
from threading import Event as Stop
from typing import Any, NamedTuple

import torch

from synthe_core.data.stream import Batch, windows
from synthe_core.errors import Interrupted, OutOfMemory, WorkError
from synthe_core.evaluation.bits_per_byte import evaluate_bits_per_byte
from synthe_core.events import Event, Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.hardware.probe import Hardware
from synthe_core.model.classifier import Classifier
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.run_folder import RunFolder
from synthe_core.training.checkpointing import begin_checkpoint, evaluation_weights, save_checkpoint, weights_are_finite
from synthe_core.training.data import TrainingData
from synthe_core.training.distributed.saving import ShardWriter
from synthe_core.training.distributed.stragglers import Stragglers
from synthe_core.training.loggers import open_loggers
from synthe_core.training.meter import Meter
from synthe_core.training.objectives.objective import Score
from synthe_core.training.sample import write_sample
from synthe_core.training.shared_validation import shared_scores
from synthe_core.training.stages import Phase, describe, frozen_in, phase_at
from synthe_core.training.state import TrainState
from synthe_core.training.step import MicroBatchOutOfMemory, StepResult, train_step
from synthe_core.training.validation import SHARE, ValidationPlan
from synthe_core.training.warm_up import needs_warm_up, warm_up

PROGRESS_SECONDS = 0.2  # between progress events
LOG_SECONDS = 10.0  # a metric comes at least this often


class Due(NamedTuple):
    """The `fraction` of the budget that is spent; whether to save and to stop before the next step, and to log it."""

    fraction: float
    save: bool
    log: bool
    stop: bool


class Trainer:
    """Trains `state` on `data` until the recipe's budget is spent."""

    def __init__(
        self, recipe: Recipe, data: TrainingData, state: TrainState, run: RunFolder, hardware: Hardware, stop: Stop
    ) -> None:
        self.recipe, self.spec, self.data, self.state, self.run = recipe, recipe.train, data, state, run
        self.hardware, self.stop, self.ranks = hardware, stop, state.engine.ranks
        self.rows = None if state.objective.whole_batch else state.engine.rows(recipe.train.batch)
        self.meter = Meter(state.settings, data.bytes_per_token if state.objective.of_text else None, self.ranks)
        self.validation = ValidationPlan(recipe.train, data)
        self.writer = ShardWriter(self.ranks) if self.ranks.size > 1 else None
        self.loggers = open_loggers(recipe, run.path, state.step) if self.ranks.leads else []
        self.saved = state.counters
        self.phase: Phase | None = None
        self.step_seconds = 0.0
        self.skipped_in_a_row = 0
        self.stragglers = Stragglers()
        self._batch: Batch | None = None
        self.flops: dict[int, float] = {}  # per token, by the length of sequences

    def train(self) -> Iterator[Event]:
        """Trains to the end of the budget; saves and raises Interrupted once `stop` is set."""
        state = self.state
        yield from self._warm_up()
        state.clock.start()
        self._started, self._fraction_at_start = time.monotonic(), self._fraction()
        self._logged = self._shown = self._started
        if self._batch is None:
            self._read_next_batch()
        yield self._progress()
        while True:
            due = self._decide()
            state.fraction = due.fraction
            if state.step and self._validations_due() > state.validations:
                yield from self._validate_and_save()
            elif state.step > self.saved.steps and due.save:
                yield from self._save()
            if state.fraction >= 1 and state.step:
                break
            if due.stop:
                yield from self._interrupt()
            yield from self._enter_phase()
            yield from self._step(due.log)
            yield from self._finish_saving(wait=False)
        yield from self._finish_saving()
        yield self._progress()
        yield self._result()

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()

    def _warm_up(self) -> Iterator[Event]:
        """Compiles kernels before the clock of a budget of time starts."""
        if not needs_warm_up(self.state.settings.device, self.spec.budget):
            return
        self._read_next_batch()
        if self._batch is not None:
            started = time.monotonic()
            sequence = phase_at(self.spec, self._fraction(), self.recipe.data.sequence).sequence
            warm_up(self.state, self._batch, sequence or self._batch.inputs.shape[1])
            yield Notice(f"kernels are ready after {time.monotonic() - started:.0f} s; the budget's time starts now")

    def _decide(self) -> Due:
        """What comes before and after the next step: rank 0's clock decides, and any rank may stop the run."""
        save = self.state.counters.reached(self.spec.save_every, self.saved)
        log = time.monotonic() - self._logged > LOG_SECONDS
        everyone = self.ranks.numbers(self._fraction(), save, log, self.stop.is_set())
        return Due(everyone[0][0], bool(everyone[0][1]), bool(everyone[0][2]), any(stop for *_, stop in everyone))

    def _stopped(self) -> bool:
        """Whether any process is to stop."""
        return any(stop for (stop,) in self.ranks.numbers(self.stop.is_set()))

    def _fraction(self) -> float:
        """Of the budget that is spent. Of a budget of time, the last validation and half a step are set aside, so that
        the budget is the time until the result."""
        reserve = self.validation.reserve(self.meter.tokens_per_second) + self.step_seconds / 2
        return self.state.counters.fraction(self.spec.budget, reserve)

    # One step

    def _enter_phase(self) -> Iterator[Event]:
        state = self.state
        yield from state.objective.reach(state.fraction)
        phase = phase_at(self.spec, state.fraction, self.recipe.data.sequence)
        if phase == self.phase:
            return
        self.phase = phase
        state.model.leave_out(phase.without)
        state.stage, state.sequence, state.frozen = phase.stage, phase.sequence, frozen_in(phase, state.model)
        if self.spec.stages:
            yield Notice(describe(phase, self.spec))

    def _step(self, log: bool) -> Iterator[Event]:
        state, batch, cursor = self.state, self._batch, self.data.stream.cursor()
        assert batch is not None  # only of a run that is stopped
        started = time.perf_counter()
        result = yield from self._step_within_memory(batch)
        state.cursor, state.metrics = cursor, {}
        if result.non_finite is not None:
            yield from self._skipped(result.non_finite)
            return
        self.skipped_in_a_row = 0
        self.step_seconds = time.perf_counter() - started
        self.meter.add(result.batch, self.step_seconds, self._flops())
        now = time.monotonic()
        if state.step % self.spec.log_every == 0 or state.step == 1 or log:
            self._logged = now
            rates = {"lr": self.spec.lr * result.learning_rate, "grad_norm": result.grad_norm}
            work, slow = self._work()
            yield self._metric("train", self.meter.read() | rates | work)
            if slow is not None:
                yield Notice(f"step {state.step}: {slow}", "warning")
        if now - self._shown > PROGRESS_SECONDS:
            self._shown = now
            yield self._progress()

    def _work(self) -> tuple[dict[str, float], str | None]:
        """How much of its own each process has done since the last log, and a sentence about one that is slow."""
        mine = self.state.engine.work.take()
        if self.ranks.size == 1:
            return {}, None
        figures, slow = self.stragglers.add([each[0] for each in self.ranks.numbers(mine)])
        return {"work_seconds": mine, **figures}, slow

    def _step_within_memory(self, batch: Batch) -> Generator[Event, None, StepResult]:
        """A step; when memory runs out, again with micro-batches half as large."""
        settings = self.state.settings
        while True:
            rows = settings.micro_batch
            half = -(-rows // 2)
            try:
                return train_step(self.state, batch, while_waiting=self._read_next_batch)
            except MicroBatchOutOfMemory as error:
                if rows == 1:
                    raise WorkError(
                        f"out of memory with one sequence of {self.recipe.data.sequence} tokens",
                        "set runtime.recompute=true, or a shorter data.sequence or a smaller model",
                    ) from error
                if self.ranks.size > 1:  # the others wait for this one in the middle of a pass
                    self.run.limit_micro_batch(half)
                    raise OutOfMemory(
                        f"out of memory with a micro-batch of {rows} on rank {self.ranks.rank}",
                        f"--resume goes on with {half}",
                    ) from error
            if settings.device.type == "cuda":
                torch.cuda.empty_cache()
            settings.micro_batch = half
            yield Notice(f"out of memory: micro-batch {rows} -> {settings.micro_batch}", "warning")

    def _read_next_batch(self) -> None:
        """The next batch; None if the run was stopped while its text was awaited. The step that is done is saved."""
        try:
            with self.state.engine.work.timed():
                self._batch = self.data.stream.next(self.spec.batch, self.rows).pinned(self.state.settings.device)
        except Interrupted:
            self._batch = None

    def _skipped(self, cause: str) -> Iterator[Event]:
        """After a step that was skipped: weights, schedule and budget have not changed, and the next batch is new."""
        self.skipped_in_a_row += 1
        what, step = f"step {self.state.step + 1}: {cause} is not finite", self.state.step
        if self.skipped_in_a_row < self.spec.patience:
            yield Notice(f"{what}; the step is skipped ({self.skipped_in_a_row} in a row)", "warning")
            return
        hint = "lower train.lr or train.clip, or use runtime.precision=float32"
        if step > self.saved.steps:
            yield from self._save()
        yield from self._finish_saving()
        if step and step == self.saved.steps:
            hint = f"the last good weights are saved; {hint}"
        raise WorkError(f"{what}, {self.skipped_in_a_row} steps in a row", hint)

    def _flops(self) -> float:
        length = self.state.sequence or self.recipe.data.sequence
        if length not in self.flops:
            self.flops[length] = self.state.model.flops(length)
        return self.flops[length]

    # Between steps

    def _validations_due(self) -> int:
        return math.floor(self.state.fraction * self.spec.validations)

    def _validate_and_save(self) -> Iterator[Event]:
        """Validates, writes a sample, saves: what happens evenly over the budget, at its end for the last time."""
        started = time.monotonic()
        if self.data.num_validation_windows and not (yield from self._validate()):
            yield from self._interrupt()  # resuming validates again
        if self.spec.sample is not None and (self.ranks.leads or self.state.engine.sharded):
            yield Sample(self.state.step, self._sample(self.spec.sample))
        self.state.validations = self._validations_due()
        yield from self._save()
        self.validation.seconds = time.monotonic() - started

    def _validate(self) -> Generator[Event, None, bool]:
        """Scores the weights on validation text; False where it was stopped."""
        state = self.state
        if state.validation_windows is None:
            state.validation_windows = self.ranks.share(self.validation.windows(self.meter.tokens_per_second))
            if state.validation_windows < self.validation.full:
                yield Notice(
                    f"validation reads {state.validation_windows} windows, not {self.validation.full}: "
                    f"all validations together may take {SHARE:.0%} of the time"
                )
        rows = max(state.settings.micro_batch, 1024 // self.recipe.data.sequence)  # short sequences, many at a time
        batches = self.data.validation_windows(state.validation_windows, rows)
        state.model.eval()
        with evaluation_weights(state), state.engine.whole():
            for score in self._scores(batches):
                yield Progress("validate", score.rows, state.validation_windows, "windows")
                if stopped := self._stopped():
                    break
            canary = {} if stopped else self._read_canary(rows)
        state.model.train()
        if stopped:
            return False
        state.metrics = score.values() | canary
        yield self._metric("validation", state.metrics)
        return True

    def _scores(self, batches: Iterable[Any]) -> Iterator[Score]:
        """The running score; of several processes each reads some of the batches, if the objective divides them."""
        objective, model, context = self.state.objective, self.state.model, self.state.settings.context
        if not objective.divides or self.ranks.size == 1:
            return objective.evaluate(model, batches, context)
        return shared_scores(lambda some: objective.evaluate(model, some, context), batches, self.ranks)  # type: ignore[arg-type, return-value]

    def _read_canary(self, rows: int) -> dict[str, float]:
        """The bits per byte of the text that shows what the model forgets."""
        split, model, settings = self.data.canary, self.state.model, self.state.settings
        if split is None or isinstance(model, Classifier):
            return {}
        limit = max(1, self.spec.validation_tokens // self.data.sequence)
        *_, score = evaluate_bits_per_byte(model, windows(split, self.data.sequence, limit, rows), settings.context)
        return {"canary_bits_per_byte": score.bits_per_byte}

    def _sample(self, prompt: str) -> str:
        model, settings = self.state.model, self.state.settings
        assert not isinstance(model, Classifier)  # refused with the recipe
        model.eval()
        try:
            with evaluation_weights(self.state), self.state.engine.whole():
                return write_sample(
                    model, self.data.tokenizer, prompt, self.spec.sample_tokens, settings, self.recipe.seed
                )
        finally:
            model.train()

    def _save(self) -> Iterator[Event]:
        step = self.state.step
        if not weights_are_finite(self.state):
            yield Notice(f"step {step}: the weights are not finite, and are not saved", "warning")
            return
        path = self.run.checkpoint(step)
        what = (path, self.state, self.recipe, self.data, self.hardware)
        if self.writer is not None:
            yield from self._finish_saving()
            begin_checkpoint(*what, self.writer)
        else:
            save_checkpoint(*what)
            self.run.prune(self.spec.keep)
            yield Saved(path, step)
        self.saved = self.state.counters

    def _finish_saving(self, *, wait: bool = True) -> Iterator[Event]:
        """Reports the checkpoint that several processes have written meanwhile."""
        saving = self.writer.finish(wait=wait) if self.writer is not None else None
        if saving is not None:
            self.run.prune(self.spec.keep)
            yield Saved(saving.path, saving.step)

    def _interrupt(self) -> Iterator[Event]:
        step = self.state.step
        if step > self.saved.steps:
            yield from self._save()
        yield from self._finish_saving()
        saved = "; saved" if step and step == self.saved.steps else ""
        raise Interrupted(f"stopped at step {step}{saved}", f"resume with: synthe train {self.run.path} --resume")

    # Events

    def _metric(self, phase: str, values: dict[str, float]) -> Metric:
        step = self.state.step
        values = values | {"fraction": self._fraction(), "seconds": self.state.clock.seconds}
        if self.spec.stages:
            values["stage"] = self.state.stage
        self.run.record(step, phase, values)
        for logger in self.loggers:
            logger.log(step, phase, values)
        return Metric(step, phase, values)

    def _progress(self) -> Progress:
        budget, fraction = self.spec.budget, self._fraction()
        spent = self.state.counters._asdict()[budget.unit]
        if budget.unit == "seconds":
            left: float | None = budget.amount - spent
        else:
            gained = fraction - self._fraction_at_start
            left = (1 - fraction) * (time.monotonic() - self._started) / gained if gained > 0 else None
        return Progress("train", min(spent, budget.amount), budget.amount, budget.unit, left)

    def _result(self) -> Result:
        """The run folder and its figures."""
        state = self.state
        values: dict[str, object] = {
            "steps": state.step,
            "tokens": state.tokens,
            "seconds": round(state.clock.seconds, 1),
        }
        return Result(values | dict(state.metrics), self.run.path)
