"""The contract of every objective of the table, and how a recipe chooses one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from synthe_core.data.conversations.example_batches import GOOD
from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.classifier import Model, build_model
from synthe_core.model.spec import ModelSpec
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import save, weights
from synthe_core.storage.manifest import Manifest
from synthe_core.training.objectives import OBJECTIVES, objective_for
from synthe_core.training.objectives.document import IDS, LOG_P, Document
from synthe_core.training.objectives.objective import Objective, ObjectiveContext, ObjectiveSetup

VOCAB, ROWS, TIME = 31, 6, 9
Ready = Callable[[str], tuple[Objective, Model, Batch]]
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
    if isinstance(objective, Document):  # what `prepare` adds
        probabilities = torch.rand(ROWS, TIME, 4, generator=generator, dtype=torch.float64)
        ids = torch.rand(ROWS, TIME, VOCAB, generator=generator).argsort(-1)[..., :4]
        predictions = {LOG_P: (probabilities / 5).log(), IDS: ids}
        return padded(tokens, targets)._replace(token_extras=predictions)
    if objective.reads == "text":
        return Batch(tokens[:, :-1].contiguous(), targets)
    group = 2 if objective.reads == "preferences" else 1
    return padded(tokens, targets)._replace(group=group, extras={GOOD: torch.arange(ROWS) % 2 == 0})


def padded(tokens: torch.Tensor, targets: torch.Tensor) -> Batch:
    """Rows of a prompt and an answer, the first ones shorter, so that a pass over them is cut."""
    lengths = TIME - ROWS + 1 + torch.arange(ROWS)
    outside = torch.arange(TIME) >= lengths[:, None]
    targets[:, :3] = IGNORED  # a prompt
    targets[outside] = IGNORED
    return Batch(tokens[:, :-1].masked_fill(outside, 0), targets, lengths)


@pytest.fixture
def ready(tmp_path: Path) -> Ready:
    """An objective of the table with a model and a batch as training steps give it; one that needs a teacher has a copy
    of the model."""

    def make(name: str) -> tuple[Objective, Model, Batch]:
        objective = OBJECTIVES[name]()
        model, batch = model_of(objective), batch_of(objective)
        context = ExecutionContext(torch.device("cpu"))
        setup = ObjectiveSetup(model, None, context, ROWS, TIME)  # type: ignore[arg-type]
        if objective.reads in ("preferences", "ratings"):
            list(objective.begin(setup))
            batch = objective.prepare(model, batch)
        if "teacher" in type(objective.config).model_fields:
            values = {"name": "teacher", "model": model.spec.model_dump(mode="json"), "data": {"sources": "stdlib"}}
            recipe, tensors = Recipe.model_validate(values), {k: t.float() for k, t in weights(model).items()}
            path = save(tmp_path / name, recipe=recipe, vocab=VOCAB, tensors=tensors, manifest=Manifest()).path
            objective = OBJECTIVES[name](OBJECTIVES[name].Config(teacher=str(path)))
            objective.setup = setup
            with torch.no_grad():
                model.norm.weight.mul_(1.5)  # not the teacher itself, from which nothing is learnt
        return objective, model, batch

    return make


@EACH
def test_the_total_is_a_sum_over_scored_targets(ready: Ready, name: str) -> None:
    objective, model, batch = ready(name)
    whole = objective(model, batch, ObjectiveContext())
    parts = [objective(model, batch.select(part), ObjectiveContext()) for part in (slice(0, 2), slice(2, None))]
    assert int(whole.scored) == objective.count(batch) == sum(int(part.scored) for part in parts)
    torch.testing.assert_close(whole.total, parts[0].total + parts[1].total)
    assert (
        whole.auxiliary.keys()
        == parts[0].auxiliary.keys()
        == model.loss(batch.inputs, batch.targets)[0].auxiliary.keys()
    )


@EACH
def test_what_is_not_a_target_has_no_gradient(ready: Ready, name: str) -> None:
    objective, model, batch = ready(name)
    batch.targets[batch.group :] = IGNORED
    gradients = []
    for part in (slice(0, batch.group), slice(None)):
        loss = objective(model, batch.select(part), ObjectiveContext())
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
    assert type(objective_for(model, name)) is type(objective)
    default = "classification" if objective.of_encoders else "language_modeling"
    assert type(objective_for(model)) is type(objective_for(model.spec)) is OBJECTIVES[default]
    other = next(other for other in OBJECTIVES if OBJECTIVES[other].of_encoders != objective.of_encoders)
    with pytest.raises(InputError, match=f"objective: {other} trains"):
        objective_for(model, other)
