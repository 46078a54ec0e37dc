"""The encoder: outputs of its head, its loss, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.model.classifier import Classifier, build_model
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.yaml_reader import parse_yaml

SPEC = {"width": 16, "blocks": 2, "block": ["spectral", {"type": "mlp", "hidden": 24}], "head": {"classes": 5}}


def encoder(**changes: object) -> Classifier:
    torch.manual_seed(0)
    model = build_model(ModelSpec.model_validate(SPEC | changes), 50)
    assert isinstance(model, Classifier)
    return model


def shaken(model: Classifier) -> Classifier:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.double()


def labelled(time: int, labels: list[int], at: list[int]) -> torch.Tensor:
    targets = torch.full((len(labels), time), -100)
    targets[range(len(labels)), at] = torch.tensor(labels)
    return targets


def test_every_class_is_as_likely_as_any_other_at_first():
    model, tokens = encoder(), torch.randint(50, (3, 12))
    assert torch.equal(model(tokens), torch.zeros(3, 5))
    loss, _ = model.loss(tokens, labelled(12, [0, 4, 2], [11, 11, 11]))
    assert loss.objective.item() == pytest.approx(math.log(5))


@pytest.mark.parametrize("patch", [None, {"stride": 4}])
def test_the_loss_is_the_cross_entropy_of_the_rows_that_have_a_class(patch):
    model, tokens = shaken(encoder(patch=patch)), torch.randint(50, (3, 10))
    lengths = torch.tensor([10, 4, 7])
    targets = labelled(10, [1, -100, 3], [9, 3, 6])
    loss, state = model.loss(tokens, targets, None, lengths)
    chances = model(tokens, lengths).log_softmax(-1)
    torch.testing.assert_close(loss.total, -(chances[0, 1] + chances[2, 3]))
    assert int(loss.scored) == 2 and state.blocks == []
    torch.testing.assert_close(loss.each.sum(), loss.total.detach())
    assert loss.each[0, 9] > 0 and loss.each[1].abs().max() == 0 and loss.each[2, 6] > 0
    loss.objective.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


@pytest.mark.parametrize("pool", ["attention", "mean"])
def test_pooling_is_its_equation(pool):
    model, tokens = shaken(encoder(head={"classes": 5, "pool": pool})), torch.randint(50, (2, 9))
    lengths = torch.tensor([9, 3])
    seen = []
    model.norm.register_forward_hook(lambda module, args, output: seen.append(output))
    logits = model(tokens, lengths)
    for row, length in enumerate(lengths.tolist()):
        hidden = seen[0][row, :length]
        scores = hidden @ model.pool.query / 4 if pool == "attention" else torch.zeros(length).double()
        pooled = scores.softmax(0) @ hidden
        torch.testing.assert_close(logits[row], model.head(pooled))


def test_it_runs_in_half_precision():
    block = ["byte_patch", "spectral", "mlp"]
    model, tokens = shaken(encoder(block=block, patch={})), torch.randint(50, (2, 30))
    whole, narrow = model(tokens), model.bfloat16()(tokens)
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.double(), whole, rtol=0.1, atol=0.1)


def test_a_text_without_tokens_has_finite_logits():
    logits = shaken(encoder(patch={}))(torch.zeros(1, 8, dtype=torch.int64), torch.tensor([0]))
    assert torch.isfinite(logits).all()


def test_recomputing_gives_the_same_gradients():
    tokens, targets = torch.randint(50, (2, 8)), labelled(8, [1, 2], [7, 7])
    gradients = []
    for recompute in (False, True):
        model = shaken(encoder())
        model.recompute = recompute
        model.loss(tokens, targets)[0].objective.backward()
        gradients.append([p.grad for p in model.parameters()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


def test_a_stem_makes_tokens_cheaper():
    whole, short = encoder(width=64), encoder(width=64, patch={"stride": 4, "taps": 6})
    blocks = sum(learner.flops(64) for learner in short.learners)
    assert short.flops(256) == pytest.approx(2 * 64 * 64 * 6 / 4 + (blocks + 4 * 64) / 4 + 2 * 64 * 5 / 256)
    assert short.flops(256) < whole.flops(256)


def test_it_takes_no_state_and_is_no_language_model():
    model, tokens = encoder(), torch.randint(50, (1, 4))
    with pytest.raises(InputError, match="reads a text at once"):
        model.loss(tokens, tokens, model.init_state(1))
    assert model.state_bytes(1000) == 0
    with pytest.raises(InputError, match="is of an encoder"):
        LanguageModel(model.spec, 50)
    with pytest.raises(InputError, match="not of an encoder"):
        Classifier(ModelSpec(width=16, blocks=1, block=["mlp"]), 50)


RECIPE = """\
model:
  width: 16
  blocks: 1
  block:
    - mlp
    - {{type: {learner}}}
  {head}
{rest}
"""


@pytest.mark.parametrize(
    "learner,head,rest,message,hint",
    [
        ("spectral", "tie: true", "", "r.yaml:6:7: model.block.1: spectral sees the whole text", "`hyena`"),
        ("mlp", "patch: {stride: 4}", "", "r.yaml:7:3: model.patch: a stem shortens the text", "byte_patch"),
        ("mlp", "head: {classes: 3}", "", "r.yaml:7:3: model.head: an encoder needs labelled text", "data.labels"),
        ("mlp", "tie: true", "data: {labels: path}", "r.yaml:8:8: data.labels: a language model reads no", "head"),
        (
            "mlp",
            "head: {classes: 3}",
            "data: {labels: path}\ntrain: {sample: x}",
            "r.yaml:9:9: train.sample: an encoder does not write text",
            "train.sample",
        ),
        ("mlp", "head: {classes: 3}", "data: {labels: path}\ntrain: {carry: true}", "train.carry", "train.carry"),
        ("mlp", "head: {classes: 3}", "data: {labels: folder}", "`path` or `field:NAME`, not 'folder'", "schema"),
        (
            "mlp",
            "patch: {strides: [2, 3]}",
            "",
            "r.yaml:7:3: model.patch: strides rise, and each is a multiple",
            "",
        ),
        ("mlp", "head: {klasses: 3}", "data: {labels: path}", "unknown key 'model.head.klasses'", "'classes'"),
    ],
)
def test_an_inconsistent_recipe_is_refused_with_the_keys_place(learner, head, rest, message, hint):
    with pytest.raises(InputError) as refused:
        Recipe.from_source(parse_yaml(RECIPE.format(learner=learner, head=head, rest=rest), "r.yaml"))
    assert message in refused.value.message
    assert hint in refused.value.hint
    assert "\n" not in refused.value.message or "klasses" in refused.value.message
