"""A model that is opened for evaluation, and what its results record of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from synthe_core.data.spec import DataSpec
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.evaluation.lengths import trained_length
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.placement import choose_device
from synthe_core.hardware.probe import probe
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.inference.weights import FLOAT32, choose_weights
from synthe_core.interop.hub import local_path
from synthe_core.interop.huggingface import backend
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.published_spec import PublishedSpec
from synthe_core.offload.load import build_model, check_no_limit
from synthe_core.offload.speed import measure_speed
from synthe_core.storage.checkpoint import Checkpoint

UNSTATED = 2048
"""Tokens that a recurrent model is taken to be trained on if its config does not say: those of Mamba."""


@dataclass(frozen=True)
class OpenedModel:
    """A checkpoint, or a model folder that transformers runs.

    files: name and SHA-256 of everything that answers depend on. trained: the tokens of a training sequence; grows:
    whether the state grows with longer ones. limit: the context of a published model. data: what it was
    trained on, None for a published model; step: of its training.
    """

    path: Path
    name: str
    model: LanguageModel
    tokenizer: Tokenizer
    context: ExecutionContext
    files: tuple[str, ...]
    recipe_digest: str
    trained: int
    grows: bool
    limit: int | None = None
    data: DataSpec | None = None
    step: int = 0

    @property
    def memory_summary(self) -> str:
        """Which weights stay in memory, and how fast the others are read; "" for a model without a limit."""
        return "" if self.model.offload is None else self.model.offload.summary


def open_model(path: Path, device: str = "auto", weights: str = FLOAT32, memory: int | None = None) -> OpenedModel:
    """The model at `path`, or of an id of the hub, with its weights on `device`, ready to read. weights: the format of
    its matrices, one of `inference.weights.WEIGHTS`; memory: the bytes that this process may take, on the CPU."""
    device = "cpu" if device == "auto" and memory is not None else device
    path = local_path(path)
    checkpoint = Checkpoint.open(path)
    if isinstance(checkpoint.recipe.model, PublishedSpec):
        device = choose_device(device, probe()).value
        choose_weights(weights, checkpoint, device)
        check_no_limit(memory)
        return _transformers(checkpoint, device)
    recipe, context = checkpoint.recipe, context_for_recipe(checkpoint.recipe, device)
    format = choose_weights(weights, checkpoint, context.device.type).format
    trained, grows = trained_length(checkpoint)
    files = sorted(checkpoint.manifest.files.items())
    tokenizer = checkpoint.tokenizer()
    with context.activate():
        model = build_model(checkpoint, format, context.device, memory).eval()
        if memory is not None:
            measure_speed(model, lambda tokens, state: model.hidden(tokens, state)[0])
    return OpenedModel(
        checkpoint.path,
        recipe.name,
        model,
        tokenizer,
        context,
        (
            *(f"{name} {digest.sha256}" for name, digest in files if not name.startswith("training/")),
            *([] if format is None else [f"weights as {format}"]),
        ),
        recipe.digest(),
        trained,
        grows,
        checkpoint.context,
        recipe.data if checkpoint.source.on_disk else None,
        checkpoint.manifest.step,
    )


def _transformers(checkpoint: Checkpoint, device: str) -> OpenedModel:
    loaded = backend.load_checkpoint(checkpoint, checkpoint.recipe.name, device)
    trained = loaded.max_length or UNSTATED
    return OpenedModel(
        checkpoint.path,
        loaded.name,
        loaded.model,
        loaded.tokenizer,
        loaded.context,
        (f"weights {loaded.digest}", f"tokenizer {loaded.tokenizer.digest}"),
        loaded.digest[:12],
        trained,
        loaded.state_bytes(2 * trained) > loaded.state_bytes(trained // 2),
        loaded.max_length,
    )
