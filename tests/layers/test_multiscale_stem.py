"""The stem at several scales: each latent is the sum of the stems of the patches that it is in, or these in a row."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from synthe_core.errors import InputError
from synthe_core.layers.multiscale_stem import MultiscaleStem, build_stem
from synthe_core.model.classifier import Classifier
from synthe_core.model.spec import ModelSpec

WIDTH = 8


def stem(width: int = WIDTH, **config) -> MultiscaleStem:
    torch.manual_seed(0)
    return MultiscaleStem(MultiscaleStem.Config(**{"strides": [2, 4, 8]} | config), width).double()


@pytest.mark.parametrize("time", [1, 2, 7, 16, 21])
@pytest.mark.parametrize("combine", ["sum", "concatenate"])
def test_a_latent_is_of_the_patches_that_it_is_in(combine, time):
    made, x = stem(combine=combine), torch.randn(2, time, WIDTH, dtype=torch.float64)
    latents, lengths = made(x, None)
    assert lengths is None and latents.shape == (2, -(-time // 2), WIDTH)
    for j in range(latents.shape[1]):
        scales = [scale(x, None)[0][:, 2 * j // stride] for stride, scale in zip((2, 4, 8), made.scales, strict=True)]
        expected = torch.stack(scales).sum(0) if combine == "sum" else torch.cat(scales, -1)
        torch.testing.assert_close(latents[:, j], expected)
    latents.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("combine", ["sum", "concatenate"])
def test_padding_is_as_nothing(combine):
    made, x = stem(combine=combine), torch.randn(3, 19, WIDTH, dtype=torch.float64)
    lengths = torch.tensor([19, 9, 0])
    latents, short = made(x, lengths)
    assert short.tolist() == [10, 5, 0]
    alone = made(x[1:2, :9], None)[0]
    torch.testing.assert_close(latents[1:2, :5], alone)


def test_concatenation_shares_all_channels_out():
    made = stem(10, combine="concatenate")
    assert [scale.norm.weight.numel() for scale in made.scales] == [4, 3, 3]
    assert made.flops(64) == 2 * 10 * (4 * 3 / 2 + 3 * 6 / 4 + 3 * 12 / 8)
    with pytest.raises(InputError, match="2 channels do not fill 3 scales"):
        stem(2, combine="concatenate")


@pytest.mark.parametrize("strides", [[2], [4, 2], [2, 2], [2, 3], [0, 2]])
def test_strides_that_do_not_nest_are_refused(strides):
    with pytest.raises(ValidationError, match="strides"):
        MultiscaleStem.Config(strides=strides)


def test_an_encoder_takes_it_from_its_recipe():
    spec = {"width": WIDTH, "blocks": 1, "block": ["mlp"], "head": {"classes": 3}, "patch": {"strides": [2, 4]}}
    model = Classifier(ModelSpec.model_validate(spec), 11)
    assert isinstance(model.patch, MultiscaleStem) and model.spec.patch == build_stem(model.spec.patch, WIDTH).config
    assert model(torch.randint(11, (2, 9)), torch.tensor([9, 4])).shape == (2, 3)
    assert ModelSpec.model_validate(model.spec.model_dump()) == model.spec
    again = ModelSpec.model_validate(spec | {"patch": {"stride": 4}})
    assert ModelSpec.model_validate(again.model_dump()).patch.stride == 4
