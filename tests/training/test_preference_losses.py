"""The losses of preference objectives by hand, in float64, and their gradients however a batch is cut."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from synthe_core.data.conversations.example_batches import GOOD
from synthe_core.data.stream import Batch
from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.model.language_model import LanguageModel, Loss
from synthe_core.ops.cross_entropy import IGNORED
from synthe_core.recipe.objective_table import OBJECTIVES
from synthe_core.training.gradients import accumulate_gradients, micro_batches
from synthe_core.training.objectives.answers import answer_logprobs, mismatched
from synthe_core.training.objectives.objective import Objective, ObjectiveContext
from synthe_core.training.settings import Settings
from tests.training.preferences import BLOCKS, PAIRS, SEQUENCE, batch_of, model_of, pairs, perturb, ratings, ready

CHOSEN, REJECTED = [-3.0, -10.0, -0.5], [-4.0, -7.0, -6.25]
REFERENCES = [-3.5, -4.375, -9.0, -9.5, -2.0, -5.0]
LENGTHS = [4, 2, 8, 5, 1, 10]


class FixedModel(torch.nn.Module):
    """A model whose tokens have given log-probabilities: those of a row divided by its targets."""

    def __init__(self, logprobs: list[float]) -> None:
        super().__init__()
        self.logprobs = torch.nn.Parameter(torch.tensor(logprobs, dtype=torch.float64))

    def loss(self, tokens: Any, targets: Any, *_: Any, per_token: bool = False) -> tuple[Loss, None]:
        scored = targets != IGNORED
        each = -(self.logprobs / scored.sum(1))[:, None] * scored
        return Loss(each.sum(), scored.sum(), {"other": torch.tensor(0.25)}, each, {}, 0.0), None


def sides() -> list[float]:
    return [value for pair in zip(CHOSEN, REJECTED, strict=True) for value in pair]


def fixed(extras: dict[str, torch.Tensor], group: int) -> Batch:
    batch = batch_of([([1], list(range(length))) for length in LENGTHS], group)
    return batch._replace(extras={**batch.extras, **extras})


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def by_hand(d: float, loss_type: str, beta: float, smoothing: float) -> float:
    if loss_type == "ipo":
        return (d - 1 / (2 * beta)) ** 2
    sign = 1 if loss_type == "sigmoid" else -1
    loss = -(1 - smoothing) * log_sigmoid(beta * d) - sign * smoothing * log_sigmoid(-beta * d)
    return loss if loss_type == "sigmoid" else loss / (1 - 2 * smoothing)


@pytest.mark.parametrize("normalized", [None, False, True])
@pytest.mark.parametrize(
    ("loss_type", "smoothing"), [("sigmoid", 0.0), ("sigmoid", 0.2), ("robust", 0.2), ("robust", 0.0), ("ipo", 0.0)]
)
def test_dpo_is_what_it_is_by_hand(loss_type: str, smoothing: float, normalized: bool | None) -> None:
    keys = {"loss_type": loss_type, "label_smoothing": smoothing, "length_normalized": normalized, "beta": 0.3}
    objective = OBJECTIVES["dpo"](OBJECTIVES["dpo"].Config(**keys))
    batch = fixed({"reference": torch.tensor(REFERENCES, dtype=torch.float64)}, 2)
    loss = objective(FixedModel(sides()), batch, ObjectiveContext())
    divides = normalized or (normalized is None and loss_type == "ipo")
    scores = [(p - r) / (n if divides else 1) for p, r, n in zip(sides(), REFERENCES, LENGTHS, strict=True)]
    differences = [scores[2 * i] - scores[2 * i + 1] for i in range(3)]
    expected = [by_hand(d, loss_type, 0.3, smoothing) for d in differences]
    assert float(loss.total.detach()) == pytest.approx(math.fsum(expected), abs=1e-12)
    assert int(loss.scored) == objective.count(batch) == 3 and loss.auxiliary.keys() == {"other"}
    means = {name: float(each.total) / float(each.weight) for name, each in loss.means.items()}
    assert means["margin"] == pytest.approx(0.3 * sum(differences) / 3)
    assert means["accuracy"] == pytest.approx(sum(d > 0 for d in differences) / 3)
    assert means["rewards/chosen"] == pytest.approx(0.3 * sum(scores[::2]) / 3)
    assert means["logps/rejected"] == pytest.approx(sum(REJECTED) / 3)
    assert means["tokens/chosen"] == pytest.approx(13 / 3)
    assert means["kl"] == pytest.approx(sum(p - r for p, r in zip(sides(), REFERENCES, strict=True)) / 6)


@pytest.mark.parametrize("loss_type", ["sigmoid", "robust"])
def test_equal_log_ratios_give_log_2(loss_type: str) -> None:
    objective = OBJECTIVES["dpo"](OBJECTIVES["dpo"].Config(loss_type=loss_type, label_smoothing=0.1, beta=2.0))
    batch = fixed({"reference": torch.tensor(sides(), dtype=torch.float64) - 1.5}, 2)
    loss = objective(FixedModel(sides()), batch, ObjectiveContext())
    assert float(loss.total.detach()) / 3 == pytest.approx(math.log(2), abs=1e-15)
    assert float(loss.means["accuracy"].total) == 1.5  # of 3: equal rewards count half


def test_kto_is_what_it_is_by_hand() -> None:
    config = OBJECTIVES["kto"].Config(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5)
    objective = OBJECTIVES["kto"](config)
    good = [True, False, False, True, True, False]
    z = 0.7
    extras = {
        "reference": torch.tensor(REFERENCES, dtype=torch.float64),
        "kl": torch.full((6,), z, dtype=torch.float64),
        GOOD: torch.tensor(good),
    }
    batch = fixed(extras, 1)
    model = FixedModel(sides())
    loss = objective(model, batch, ObjectiveContext())
    ratios = [p - r for p, r in zip(sides(), REFERENCES, strict=True)]
    expected = [
        1.5 / (1 + math.exp(0.3 * (s - z))) if each else 0.5 / (1 + math.exp(0.3 * (z - s)))
        for s, each in zip(ratios, good, strict=True)
    ]
    assert float(loss.total.detach()) == pytest.approx(math.fsum(expected), abs=1e-12)
    assert int(loss.scored) == objective.count(batch) == 6
    (gradient,) = torch.autograd.grad(loss.total, [model.logprobs])
    assert all((float(slope) < 0) == each for slope, each in zip(gradient, good, strict=True))
    assert float(loss.means["accuracy"].total) == sum((s > z) == each for s, each in zip(ratios, good, strict=True))
    assert float(loss.means["rewards/chosen"].total) == pytest.approx(
        0.3 * sum(s for s, each in zip(ratios, good, strict=True) if each)
    )


def test_orpo_is_what_it_is_by_hand() -> None:
    objective = OBJECTIVES["orpo"](OBJECTIVES["orpo"].Config(beta=0.3))
    batch = objective.prepare(None, fixed({}, 2))
    loss = objective(FixedModel(sides()), batch, ObjectiveContext())

    def log_odds(value: float, length: int) -> float:
        p = math.exp(value / length)
        return math.log(p / (1 - p))

    odds = [log_odds(value, length) for value, length in zip(sides(), LENGTHS, strict=True)]
    nll = -sum(CHOSEN) / (4 + 8 + 1)
    expected = nll - 0.3 * sum(log_sigmoid(odds[2 * i] - odds[2 * i + 1]) for i in range(3)) / 3
    assert float(loss.total.detach()) / 3 == pytest.approx(expected, abs=1e-7)  # the weights are float32
    assert float(loss.means["nll"].total) / float(loss.means["nll"].weight) == pytest.approx(nll)


def test_orpo_of_a_certain_answer_is_finite() -> None:
    model = FixedModel([0.0, -3.0] * 3)
    objective = OBJECTIVES["orpo"]()
    loss = objective(model, objective.prepare(None, fixed({}, 2)), ObjectiveContext())
    (gradient,) = torch.autograd.grad(loss.total, [model.logprobs])
    assert torch.isfinite(loss.total) and torch.isfinite(gradient).all()


def data_of(objective: Objective) -> Batch:
    return ratings() if objective.reads == "ratings" else pairs()


CASES = [
    ("dpo", {}),
    ("dpo", {"loss_type": "ipo"}),
    ("dpo", {"loss_type": "robust", "label_smoothing": 0.1}),
    ("kto", {"undesirable_weight": 2.0}),
    ("orpo", {"nll": "answer"}),
    ("orpo", {"nll": "text"}),
]


@pytest.mark.parametrize("kind", list(BLOCKS)[:2])
@pytest.mark.parametrize(("name", "keys"), CASES)
def test_the_gradient_does_not_depend_on_micro_batches(name: str, keys: dict[str, Any], kind: str) -> None:
    model = model_of(kind)
    objective = ready(name, model, **keys)
    perturb(model)
    batch = objective.prepare(model, data_of(objective))
    results = []
    for rows in (1, 2, 50):
        settings = Settings(ExecutionContext(torch.device("cpu")), rows)
        report = accumulate_gradients(objective, model, batch, settings, sequence=SEQUENCE)
        gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        results.append((report, gradients))
        model.zero_grad(set_to_none=True)
    assert len(list(micro_batches(batch, 1, SEQUENCE))) > 1
    for report, gradients in results[1:]:
        torch.testing.assert_close(report.total, results[0][0].total, rtol=1e-10, atol=1e-12)
        assert report.num_targets == objective.count(batch)
        for one, other in zip(gradients, results[0][1], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-11)
        for mean_name, mean in report.means.items():
            torch.testing.assert_close(mean.total, results[0][0].means[mean_name].total, msg=mean_name)


@pytest.mark.parametrize("kind", list(BLOCKS)[:2])
@pytest.mark.parametrize(("name", "keys"), CASES)
def test_padding_and_company_change_nothing(name: str, keys: dict[str, Any], kind: str) -> None:
    """The loss of a batch is that of its groups alone, at their own lengths."""
    model = model_of(kind)
    objective = ready(name, model, **keys)
    perturb(model)
    batch = objective.prepare(model, data_of(objective))
    whole = objective(model, batch, ObjectiveContext()).total
    parts = [
        objective(model, batch.select(slice(first, first + batch.group)), ObjectiveContext()).total
        for first in range(0, len(batch.inputs), batch.group)
    ]
    torch.testing.assert_close(whole, sum(parts), rtol=1e-10, atol=1e-12)


def test_losses_of_learners_stay_in_the_loss() -> None:
    model = model_of("slots")
    batch = pairs()
    expected = model.loss(batch.inputs, batch.targets, None, batch.lengths)[0].auxiliary
    assert expected
    for name in ("dpo", "orpo"):
        objective = ready(name, model)
        auxiliary = objective(model, objective.prepare(model, batch), ObjectiveContext()).auxiliary
        assert auxiliary.keys() == expected.keys()


def test_a_prompt_is_not_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probabilities are of the answer's tokens, given all before them, and of those alone."""
    model, batch = model_of(), pairs()
    loss, logprobs = answer_logprobs(model, batch)
    assert not loss.each.requires_grad and logprobs.requires_grad
    for row, (prompt, answer) in enumerate((p, a) for p, *answers in PAIRS for a in answers):
        text = torch.cat([batch.inputs[row, :1], batch.inputs[row, 1 : prompt + answer - 1]])[None]
        table = model(text)[0].log_softmax(-1)[0]
        scored = [table[t, batch.targets[row, t]] for t in range(prompt - 1, prompt + answer - 1)]
        torch.testing.assert_close(logprobs[row], torch.stack(scored).sum())


def test_rating_rows_are_paired_with_answers_to_other_prompts() -> None:
    texts = [([1, 2], [3, 4, 5]), ([1, 2], [6]), ([7], [8, 9]), ([1, 2], [10, 11])]
    others = mismatched(batch_of(texts, 1), sequence=3)
    expected = [([1, 2], [8, 9]), ([1, 2], [8, 9]), ([7], [6]), ([1, 2], [8, 9])]
    assert torch.equal(others.targets, batch_of(expected, 1).targets)
    assert torch.equal(others.inputs, batch_of(expected, 1).inputs)
    cut = mismatched(batch_of([([1, 2], [3]), ([4], [5, 6, 7, 8])], 1), sequence=3)
    assert cut.inputs.tolist() == [[1, 2, 5], [4, 0, 0]] and cut.targets.tolist() == [[-100, 5, 6], [3, -100, -100]]


def test_the_divergence_of_kto_is_that_of_the_whole_batch_and_has_no_gradient() -> None:
    model = model_of()
    objective = ready("kto", model)
    assert not objective.prepare(model, ratings()).extras["kl"].any()
    perturb(model, scale=0.3)
    prepared = objective.prepare(model, ratings())
    others = mismatched(ratings(), SEQUENCE)
    with torch.no_grad():
        now = answer_logprobs(model, others)[1]
        then = answer_logprobs(model_of(), others)[1]
    z = (now - then).mean().clamp_min(0)
    torch.testing.assert_close(prepared.extras["kl"], z.expand(5))
    assert not prepared.extras["kl"].requires_grad
    with pytest.raises(InputError, match="a batch has one"):
        objective.prepare(model, ratings().select(slice(0, 1)))


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo"])
def test_validation_is_of_all_rows_however_they_are_read(name: str) -> None:
    model = model_of("delta")
    objective = ready(name, model)
    perturb(model)
    batch = data_of(objective)
    context = ExecutionContext(torch.device("cpu"))
    (whole,) = objective.evaluate(model, [batch], context)
    trained = objective(model, objective.prepare(model, batch), ObjectiveContext())
    assert whole.rows == objective.count(batch)
    assert whole.values()["loss"] == pytest.approx(float(trained.total.detach() / trained.scored), rel=1e-6)
    assert {"loss", "accuracy", "margin", "rewards/chosen", "rewards/rejected"} <= whole.values().keys()
    if name != "kto":  # whose mismatched answers are those of a batch
        parts = [batch.select(slice(first, first + 2)) for first in range(0, len(batch.inputs), 2)]
        *_, last = objective.evaluate(model, parts, context)
        assert last.values() == pytest.approx(whole.values(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("dpo", {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing goes with sigmoid or robust"),
        ("dpo", {"loss_type": "robust", "label_smoothing": 0.5}, "less than 0.5"),
        ("dpo", {"beta": 0}, "greater than 0"),
        ("kto", {"undesirable_weight": 0}, "greater than 0"),
    ],
)
def test_settings_without_a_meaning_are_errors(name: str, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OBJECTIVES[name].Config(**keys)


def test_the_model_learns_what_is_chosen() -> None:
    """Gradient descent raises the accuracy to 1 and lowers the loss, with every objective."""
    for name in ("dpo", "kto", "orpo"):
        model: LanguageModel = model_of("delta")
        objective = ready(name, model)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        losses = []
        for _ in range(25):
            loss = objective(model, objective.prepare(model, data_of(objective)), ObjectiveContext())
            losses.append(float(loss.total.detach()))
            optimizer.zero_grad()
            loss.objective.backward()
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0], name
        assert float(loss.means["accuracy"].total) == objective.count(data_of(objective)), name
