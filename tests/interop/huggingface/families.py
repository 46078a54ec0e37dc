"""A published family in our learners against transformers: logits of a text, of its pieces, decoded, and gradients."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from synthe_core.inference.fused_decoder import FusedDecoder, refusal
from synthe_core.interop.huggingface.model import HuggingFaceModel
from synthe_core.interop.source import ConvertedSource
from synthe_core.storage.checkpoint import Checkpoint
from tests.interop.huggingface.models import VOCAB, published

TIME, DECODED = 37, 20
LOGITS, GRADIENTS = 1e-4, 1e-3  # the largest differences, of the largest number of each tensor


def check_family(folder: Path, kind: str, *, vocab: int = VOCAB, **options: Any) -> Any:
    """Saves a random model of transformers' class `kind`ForCausalLM in `folder`, and compares ours with it.

    Returns our recipe's model, in which a test may look for what the options are to become.
    """
    peer = published(folder, kind, vocab_size=vocab, **options)
    checkpoint = Checkpoint.open(folder)
    model = checkpoint.model()
    torch.manual_seed(1)
    text = torch.randint(0, vocab, (2, TIME + DECODED))
    with torch.no_grad():
        expected = peer(text, use_cache=False).logits
        assert_close(model(text)[0], expected, LOGITS, "the logits of a text")
        state, pieces = None, []
        for piece in text.split([11, 4, TIME - 15, *[1] * DECODED], dim=1):
            logits, state = model(piece, state)
            pieces.append(logits)
        assert_close(torch.cat(pieces, 1), expected, LOGITS, "the logits of pieces and of decoded tokens")
        _check_fused(model, text)
    _check_gradients(folder, peer, model, text)
    return checkpoint.recipe.model


def _check_fused(model: Any, text: torch.Tensor) -> None:
    """Compares a token in one call with the operators', of a model whose learners can be run so."""
    if refusal(model) is not None:
        return
    decoder, (ours, theirs) = FusedDecoder(model), [model.hidden(text[:, :TIME])[1]] * 2
    for token in text[:, TIME : TIME + 3].split(1, dim=1):
        hidden, ours, _ = decoder.hidden(token, ours)
        expected, theirs, _ = model.hidden(token, theirs)
        assert_close(hidden, expected, LOGITS, "a token in one call")


def _check_gradients(folder: Path, peer: Any, model: Any, text: torch.Tensor) -> None:
    """Compares the gradients of every published tensor: ours taken back through what makes our tensors of them."""
    inputs, targets = text[:, :-1], text[:, 1:]
    peer.requires_grad_(True).zero_grad()
    F.cross_entropy(peer(inputs, use_cache=False).logits.flatten(0, 1), targets.flatten()).backward()
    with torch.no_grad():
        for parameter in peer.parameters():
            parameter.data = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    peer.save_pretrained(folder / "gradients")  # under their published names
    theirs = HuggingFaceModel(folder / "gradients")
    ours = published_gradients(folder, model, inputs, targets)
    for name, gradient in ours.items():
        assert_close(gradient, theirs[name], GRADIENTS, f"the gradient of {name}")


def published_gradients(
    folder: Path, model: Any, inputs: torch.Tensor, targets: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The gradient of every tensor of a folder that is not ignored, by what our model of it computes: the gradients of
    our tensors, taken back through what makes them of published ones."""
    source = ConvertedSource(HuggingFaceModel(folder)).model
    theirs, ignored = source.published, source.layout.ignored
    model.requires_grad_(True).zero_grad()
    loss, _ = model.loss(inputs, targets)
    assert not loss.auxiliary, "transformers adds no loss of its own to that of the text"
    F.cross_entropy(model(inputs)[0].flatten(0, 1), targets.flatten()).backward()
    ours = {name: torch.zeros(theirs.shape(name)) for name in theirs if not (ignored and re.search(ignored, name))}
    named = dict(model.named_parameters())
    for name, origin in source.layout.origins(source.tie).items():
        if name not in named:  # a buffer, which has no gradient
            for each in origin.names:
                ours.pop(each)
            continue
        gradient = named[name].grad
        assert gradient is not None, name
        parts = [theirs[each].float().requires_grad_() for each in origin.names]
        made = torch.cat(parts) if origin.make is None else origin.make(*parts)
        for each, part in zip(origin.names, torch.autograd.grad(made, parts, gradient, allow_unused=True), strict=True):
            ours[each] += 0 if part is None else part
    return ours


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float, what: str) -> None:
    scale = max(1e-6, float(theirs.abs().max()))
    difference = float((ours - theirs).abs().max()) / scale
    assert difference < tolerance, f"{what} differs by {difference:.2g} of its largest number, {scale:.2g}"
