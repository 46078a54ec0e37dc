"""The contract of every objective of the table, and how a recipe chooses one."""

from __future__ import annotations

import pytest
import torch

from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.training.objectives import OBJECTIVES, objective_for
from synthe_core.training.objectives.objective import Objective, ObjectiveContext

VOCAB, ROWS, TIME = 31, 5, 9
EACH = pytest.mark.parametrize("name", list(OBJECTIVES))


def model_of(objective: Objective) -> Model:
    torch.manual_seed(0)
    spec: dict[str, object] = {"width": 8, "blocks": 2, "block": [{"type": "delta", "heads": 2}], "confidence": {}}
    if objective.of_encoders:
        spec |= {"block": [{"type": "spectral"}], "head": {"classes": 3}, "confidence": None}
    return build_model(ModelSpec.model_validate(spec), VOCAB).double()


def batch_of(objective: Objective) -> Batch:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(VOCAB, (ROWS, TIME + 1), generator=generator)
    targets = tokens[:, 1:].clone()
    if objective.of_encoders:
        targets[:, :-1] = IGNORED
        targets[:, -1] %= 3
    return Batch(tokens[:, :-1].contiguous(), targets)


def rows(batch: Batch, part: slice) -> Batch:
    return Batch(batch.inputs[part], batch.targets[part])


@EACH
def test_the_total_is_a_sum_over_scored_targets(name: str) -> None:
    objective = OBJECTIVES[name]()
    model, batch = model_of(objective), batch_of(objective)
    whole = objective(model, batch, ObjectiveContext())
    parts = [objective(model, rows(batch, part), ObjectiveContext()) for part in (slice(0, 2), slice(2, None))]
    assert int(whole.scored) == objective.count(batch) == sum(int(part.scored) for part in parts)
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    assert (
        whole.auxiliary.keys()
        == parts[0].auxiliary.keys()
        == model.loss(batch.inputs, batch.targets)[0].auxiliary.keys()
    )


@EACH
def test_what_is_not_a_target_has_no_gradient(name: str) -> None:
    objective = OBJECTIVES[name]()
    model, batch = model_of(objective), batch_of(objective)
    batch.targets[1:] = IGNORED
    gradients = []
    for part in (slice(0, 1), slice(None)):
        loss = objective(model, rows(batch, part), ObjectiveContext())
        parameters = list(model.parameters())
        gradients.append(torch.autograd.grad(loss.total, parameters, allow_unused=True))
    for alone, together in zip(*gradients, strict=True):
        if alone is not None:
            torch.testing.assert_close(alone, together)


def test_an_unknown_objective_is_an_error_with_a_hint() -> None:
    with pytest.raises(InputError) as failed:
        OBJECTIVES["clasification"]
    assert "classification" in str(failed.value.hint)


@EACH
def test_it_is_chosen_by_name_or_by_the_head_and_not_for_the_other_kind_of_model(name: str) -> None:
    objective = OBJECTIVES[name]()
    model = model_of(objective)
    assert type(objective_for(model)) is type(objective_for(model, name)) is type(objective)
    other = next(other for other in OBJECTIVES if OBJECTIVES[other].of_encoders != objective.of_encoders)
    with pytest.raises(InputError, match=f"objective: {other} trains"):
        objective_for(model, other)
