"""How a block adds its learners to the stream, and the keys of a model around the blocks."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from synthe_core.errors import InputError
from synthe_core.layers.learner import Pass
from synthe_core.model.block import Block
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.yaml_reader import YamlSource

WIDTH, VOCAB = 12, 29
MLP = {"type": "mlp", "hidden": 8}
DELTA = {"type": "delta", "heads": 2}


def spec(**options):
    return ModelSpec.model_validate({"width": WIDTH, "blocks": 2, "block": [MLP]} | options)


def block(*residuals, norm="rms"):
    torch.manual_seed(0)
    entries = [MLP if residual is None else MLP | {"residual": residual} for residual in residuals]
    made = Block(spec(block=entries).block, WIDTH, norm=norm).double()
    for parameter in (*made.norms.parameters(), *made.post_norms.parameters()):
        torch.nn.init.normal_(parameter)
    return made


def run(made, x):
    return made(x, made.init_state(x.shape[0]), Pass.over(x))[0]


def norm(module, x):
    if hasattr(module, "bias"):
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + module.eps).sqrt()
        y = y if module.weight is None else y * module.weight
        return y if module.bias is None else y + module.bias
    return F.rms_norm(x, (WIDTH,), module.weight, module.eps)


def learned(made, place, x):
    learner = made.learners[place]
    return learner(x, (), Pass.over(x))[0]


@pytest.mark.parametrize("kind", ["rms", "layer", "layer_no_bias", "layer_no_affine"])
@pytest.mark.parametrize("where", ["pre", "post", "both", "stream"])
def test_a_learner_is_added_as_its_residual_says(kind, where):
    made = block({"norm": where, "input_scale": 0.7, "scale": 1.3, "skip": 0.9}, norm=kind)
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    inputs = x if where == "post" else norm(made.norms["0"], x)
    y = learned(made, 0, 0.7 * inputs)
    y = norm(made.post_norms["0"], y) if where in ("post", "both") else y
    torch.testing.assert_close(run(made, x), 0.9 * (inputs if where == "stream" else x) + 1.3 * y)


@pytest.mark.parametrize(
    "kind, parameters", [("layer", {"weight", "bias"}), ("layer_no_bias", {"weight"}), ("layer_no_affine", set())]
)
def test_a_norm_has_the_parameters_of_its_kind(kind, parameters):
    model = LanguageModel(spec(norm=kind), VOCAB)
    assert {name for name, _ in model.norm.named_parameters()} == parameters
    assert {name for name, _ in model.blocks[0].norms.named_parameters()} == {f"0.{name}" for name in parameters}


def test_learners_side_by_side_read_the_same_stream():
    x = torch.randn(2, 5, WIDTH, dtype=torch.float64)
    made = block(None, {"parallel": True}, {"norm": "shared"}, None)
    first, second = norm(made.norms["0"], x), norm(made.norms["1"], x)
    middle = x + learned(made, 0, first) + learned(made, 1, second) + learned(made, 2, second)
    torch.testing.assert_close(run(made, x), middle + learned(made, 3, norm(made.norms["3"], middle)))
    assert set(made.norms) == {"0", "1", "3"} and not made.post_norms


def test_blocks_of_several_kinds_are_repeated_as_often_as_needed():
    model = LanguageModel(spec(blocks=5, block=[[DELTA, MLP], ["momentum"]]), VOCAB)
    kinds = [[type(learner).__name__ for learner in each.learners] for each in model.blocks]
    assert kinds == [["Delta", "MLP"], ["Momentum"], ["Delta", "MLP"], ["Momentum"], ["Delta", "MLP"]]
    assert [each.type for each in model.spec.learners] == ["delta", "mlp", "momentum"]
    again = ModelSpec.model_validate(model.spec.model_dump(mode="json"))
    assert again == model.spec and again.kinds == model.spec.kinds


EVERYTHING = {
    "block": [[DELTA | {"residual": {"norm": "both", "scale": 0.5}}, MLP | {"residual": {"parallel": True}}], [DELTA]],
    "blocks": 3,
    "norm": "layer",
    "positions": 64,
    "embedding_scale": 3.0,
    "embed_norm": False,
    "logit_scale": 0.25,
    "logit_cap": 2.0,
}


def test_text_in_pieces_has_the_logits_of_the_whole():
    torch.manual_seed(0)
    model = LanguageModel(spec(**EVERYTHING), VOCAB).double()
    text = torch.randint(0, VOCAB, (2, 33))
    whole, state, pieces = model(text)[0], None, []
    for piece in text.split([11, 1, 21], 1):
        logits, state = model(piece, state)
        pieces.append(logits)
    torch.testing.assert_close(torch.cat(pieces, 1), whole)
    assert whole.abs().max() < 2


@pytest.mark.parametrize("head", [{}, {"head_bias": True}, {"head_bias": True, "tie": True, "logit_cap": None}])
def test_every_parameter_gets_the_gradient_of_its_loss(head):
    torch.manual_seed(0)
    model = LanguageModel(spec(**EVERYTHING | {"tie": False} | head), VOCAB).double()
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter)
    text = torch.randint(0, VOCAB, (2, 34))
    loss, _ = model.loss(text[:, :-1], text[:, 1:])
    given = torch.autograd.grad(loss.total, list(model.parameters()))
    expected = F.cross_entropy(model(text[:, :-1])[0].flatten(0, 1), text[:, 1:].flatten(), reduction="sum")
    torch.testing.assert_close(loss.total, expected)
    names = [name for name, _ in model.named_parameters()]
    for name, one, other in zip(names, given, torch.autograd.grad(expected, list(model.parameters())), strict=True):
        torch.testing.assert_close(one, other, msg=name)
        assert one.abs().max() > 0, name


@pytest.mark.parametrize(
    "model, message",
    [
        ({"block": [MLP | {"residual": {"norm": "shared"}}]}, "model.block.0.residual: the first learner"),
        ({"block": [[DELTA], [MLP | {"residual": {"parallel": True}}]]}, "model.block.1.0.residual: the first"),
        (
            {"block": [MLP | {"residual": {"norm": "post"}}, MLP | {"residual": {"norm": "shared"}}]},
            "model.block.1.residual.norm: the learner before it has no norm",
        ),
        ({"block": [[MLP, {"type": "mlq"}]]}, "model.block.0.1: unknown learner 'mlq'"),
        ({"block": []}, "model.block"),
        ({"block": [[]]}, "model.block.0"),
        ({"block": [[DELTA], MLP]}, "model.block.0: a learner is a name or a mapping"),
        ({"block": [[MLP | {"hiden": 3}]]}, "unknown key 'model.block.0.0.hiden'"),
        ({"positions": 8}, "model.positions: 8 positions are fewer"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(model, message):
    values = {"model": {"width": WIDTH, "blocks": 2, "block": [MLP]} | model}
    with pytest.raises(InputError) as caught:
        Recipe.from_source(YamlSource("r.yaml", values, {}))
    assert message in str(caught.value)


def test_a_recipe_does_not_list_the_usual_residual():
    values = {"model": {"width": WIDTH, "blocks": 2, "block": [MLP, MLP | {"residual": {"norm": "post"}}]}}
    first, second = Recipe.from_source(YamlSource("r.yaml", values, {})).model_dump(mode="json")["model"]["block"]
    assert "residual" not in first and list(second)[-1] == "residual" and second["residual"]["norm"] == "post"
