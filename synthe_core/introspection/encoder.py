"""An encoder reading one text: what its learners emit at every latent, and the class that it gives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.introspection.observe import FOLLOWED, Observation, Predictions, memory_calls
from synthe_core.introspection.report import (
    Report,
    block_range,
    check_length,
    check_tokens,
    encode,
    groups,
    introspect,
    report_of,
    token_text,
)
from synthe_core.layers.trace import Trace
from synthe_core.model.classifier import Classifier
from synthe_core.ops.dispatch import record_ops
from synthe_core.storage.checkpoint import Checkpoint

LIKELIEST = 5  # classes that a report names


def introspect_encoder(
    path: Path,
    text: str,
    *,
    layers: str | None = None,
    what: Sequence[str] = (),
    tokens: Sequence[int] = (),
    device: str = "auto",
) -> Report:
    """Reads `text` with the encoder of a checkpoint. As `report.introspect`, except that the report's tokens are the
    latents that the blocks read: with a stem, patches of the text. Its facts have `classes`, the most likely classes
    with their probabilities; there are no predictions of a next token."""
    checkpoint = Checkpoint.open(path)
    context = context_for_recipe(checkpoint.recipe, device)
    model, tokenizer = checkpoint.classifier(context.device).eval(), checkpoint.tokenizer()
    ids = encode(tokenizer, text, checkpoint.vocab)
    with context.activate():
        return examine_encoder(
            model, tokenizer, ids, checkpoint.classes, checkpoint.recipe.name, layers=layers, what=what, tokens=tokens
        )


def examine_encoder(
    model: Classifier,
    tokenizer: Tokenizer,
    ids: list[int],
    classes: Sequence[str],
    name: str = "model",
    *,
    layers: str | None = None,
    what: Sequence[str] = (),
    tokens: Sequence[int] = (),
) -> Report:
    """The report of `model` reading the tokens `ids`."""
    selected, blocks = groups(what), block_range(layers, model.spec.blocks)
    check_length(ids)
    stride = 1 if model.patch is None else model.patch.config.stride
    patches = [ids[start : start + stride] for start in range(0, len(ids), stride)]
    pieces = ["".join(token_text(tokenizer, token) for token in patch) for patch in patches]
    check_tokens(tokens, len(patches))
    observed, probabilities = observe_encoder(model, patches, "memory" in selected or bool(tokens))
    report = report_of(
        model, tokenizer, observed, name=name, selected=selected, blocks=blocks, tokens=tokens, pieces=pieces
    )
    best = np.argsort(-probabilities, kind="stable")[:LIKELIEST].tolist()
    report.facts["classes"] = [[classes[number], float(probabilities[number])] for number in best]
    return report


def introspect_any(path: Path, text: str, **options: Any) -> Report:
    """`introspect` for a language model, `introspect_encoder` for an encoder, with their options."""
    model = Checkpoint.open(path).recipe.model
    read = introspect_encoder if getattr(model, "head", None) is not None else introspect
    return read(path, text, **options)


@torch.no_grad()
def observe_encoder(
    model: Classifier, patches: list[list[int]], memories: bool = True
) -> tuple[Observation, np.ndarray]:
    """What is recorded while `model` reads the tokens of these patches, and the probability of each class."""
    trace, latents, ids = Trace(), len(patches), [token for patch in patches for token in patch]
    text = torch.tensor([ids], dtype=torch.int64, device=model.embedding.weight.device)
    with record_ops(FOLLOWED if memories else ()) as recorder, memory_calls(model, recorder) as calls:
        logits, _ = model.read(text, None, trace)
    nothing = np.full(latents, np.nan, dtype=np.float32)
    none = np.zeros((latents, 0))
    predictions = Predictions(nothing, np.full(latents, -1), nothing, none.astype(np.int64), none)
    observed = Observation([patch[0] for patch in patches], trace.records, calls, predictions, model.init_state(1))
    return observed, logits[0].double().softmax(-1).cpu().numpy()
