"""One training step: what it changes, what it leaves alone, and the objectives that it can minimise."""

from __future__ import annotations

import math

import pytest
import torch

from synthe_core.data.stream import Batch
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.schema import TrainSpec
from synthe_core.training import step as steps
from synthe_core.training.objectives import OBJECTIVES, objective_for
from synthe_core.training.objectives.objective import ObjectiveContext
from synthe_core.training.optimizer import Optimizer
from synthe_core.training.settings import Settings
from synthe_core.training.state import TrainState
from synthe_core.training.step import MicroBatchOutOfMemory, train_step
from synthe_core.training.weight_average import WeightAverage

BLOCK = [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 16}]


def make(objective=None, micro_batch=2, **train) -> TrainState:
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec.model_validate({"width": 8, "blocks": 2, "block": BLOCK}), 31)
    spec = TrainSpec.model_validate({"lr": 1e-2, "ema": 0.9} | train)
    settings = Settings(ExecutionContext(), micro_batch)
    objective = objective or objective_for(model)
    return TrainState(model, objective, Optimizer(model, spec), spec, settings, WeightAverage(model, 0.9), fraction=0.5)


def batch(seed: int = 0) -> Batch:
    tokens = torch.randint(31, (4, 9), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous())


def tensors(state: TrainState) -> dict[str, torch.Tensor]:
    """Everything that a step may change, copied."""
    weights = {f"model.{name}": tensor.clone() for name, tensor in state.model.state_dict().items()}
    average = {f"average.{name}": tensor.clone() for name, tensor in state.average.tensors.items()}
    return weights | average | {name: tensor.clone() for name, tensor in state.optimizer.tensors().items()}


def test_a_step_counts_and_reports_what_it_did():
    state = make()
    before = tensors(state)
    result = train_step(state, batch())
    assert (state.step, state.tokens) == (1, 32) == (1, result.batch.num_tokens)
    assert float(result.loss) == pytest.approx(math.log(31), rel=0.1)
    assert result.grad_norm > 0 and result.learning_rate > 0 and not result.skipped
    assert not torch.equal(before["model.embedding.weight"], tensors(state)["model.embedding.weight"])
    losses = [float(train_step(state, batch()).loss) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_the_gradient_is_clipped_to_its_norm():
    state = make(clip=1e-3)
    result = train_step(state, batch())
    norm = torch.nn.utils.get_total_norm([p.grad for p in state.optimizer.parameters if p.grad is not None])
    assert result.grad_norm > 0.1 and float(norm) == pytest.approx(1e-3, rel=1e-2)


def test_a_step_that_is_not_finite_changes_nothing(monkeypatch):
    state = make()
    train_step(state, batch())
    before, real = tensors(state), LanguageModel.loss

    def broken(self, *args):
        loss, after = real(self, *args)
        return loss._replace(total=loss.total * math.nan), after

    monkeypatch.setattr(LanguageModel, "loss", broken)
    result = train_step(state, batch(1))
    assert result.skipped and result.non_finite == "the cross-entropy"
    assert (state.step, state.tokens) == (1, 32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(state).items())


def test_a_step_that_runs_out_of_memory_may_be_repeated_with_smaller_passes(monkeypatch):
    whole, parts = make(micro_batch=1), make(micro_batch=4)
    before, real = tensors(parts), steps.accumulate_gradients

    def small(objective, model, batch, settings, **rest):
        losses = real(objective, model, batch, settings, **rest)
        if settings.micro_batch > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return losses

    monkeypatch.setattr(steps, "accumulate_gradients", small)
    with pytest.raises(MicroBatchOutOfMemory):
        train_step(parts, batch())
    assert parts.step == 0 and all(p.grad is None for p in parts.model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(parts).items())
    parts.settings.micro_batch = 1
    train_step(parts, batch())
    train_step(whole, batch())
    expected = tensors(whole)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors(parts).items())


def test_other_errors_are_not_treated_as_out_of_memory(monkeypatch):
    def defective(*args, **rest):
        raise RuntimeError("a defect")

    monkeypatch.setattr(steps, "accumulate_gradients", defective)
    with pytest.raises(RuntimeError, match="a defect"):
        train_step(make(), batch())


def test_the_next_batch_is_read_before_the_step_waits_for_the_device():
    calls: list[int] = []
    state = make()
    train_step(state, batch(), while_waiting=lambda: calls.append(state.step))
    assert calls == [0]


def test_another_objective_is_minimised_by_the_same_step():
    """Half of the cross-entropy, on every second row: half the gradient of those rows."""
    language_modeling = OBJECTIVES["language_modeling"]

    class Half(language_modeling):
        def __call__(self, model, batch, ctx: ObjectiveContext):
            loss = super().__call__(model, batch, ctx)
            return loss._replace(total=0.5 * loss.total)

    whole, half = make(clip=None, micro_batch=4), make(Half(), clip=None, micro_batch=1)
    one, other = train_step(whole, batch()), train_step(half, batch())
    assert float(other.loss) == pytest.approx(0.5 * float(one.loss), rel=1e-5)
    assert other.grad_norm == pytest.approx(0.5 * one.grad_norm, rel=1e-4)
