"""Model folders of Hugging Face, run by the library transformers (extra `hf`) wherever our own models run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch

from synthe_core.errors import InputError
from synthe_core.hardware.execution import ExecutionContext
from synthe_core.hardware.probe import probe
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.huggingface import transformers_trial
from synthe_core.interop.huggingface.import_tokenizer import tokenizer_of
from synthe_core.interop.huggingface.invariant_modules import use_primitives
from synthe_core.interop.huggingface.pretrained import NARROW, choose_dtype, library, read_pretrained
from synthe_core.interop.huggingface.published import CONFIG, Published, check_depth
from synthe_core.interop.huggingface.transformers_model import TransformersModel
from synthe_core.interop.huggingface.transformers_trial import FailedTrial
from synthe_core.model.language_model import LanguageModel
from synthe_core.ops.dispatch import batch_invariant_on
from synthe_core.storage.hub.snapshot import model_name


def load(path: Path, name: str | None = None, device: torch.device | str = "cpu") -> LoadedModel:
    """The model folder at `path`: in the dtype of its weights where the device is faster with it, else in float32.
    Nothing is downloaded, no pickle is read and no code of the folder runs."""
    library(path)
    published = Published(path)
    check_depth(published.config, len(published))  # opens the files too, and says in one line what is wrong with them
    context = _context(torch.device(device))  # before the first product
    model = _tried(published, context)
    with context.activate():
        if context.batch_invariant and not transformers_trial.is_batch_invariant(model):
            context = replace(context, batch_invariant=False)
    steps = tokenizer_of(published, model.vocab)
    try:
        while True:
            next(steps)
    except StopIteration as end:
        tokenizer = end.value
    if tokenizer is None:
        raise InputError(f"{path} has no tokenizer.json", "fetch it as well")
    return LoadedModel(
        name or model_name(path),
        cast(LanguageModel, model),  # it has the interface that the engine uses
        tokenizer,
        path,
        model.spec.digest,
        int((path / CONFIG).stat().st_mtime),
        max_length=model.limit,
        context=context,
    )


def _tried(published: Published, context: ExecutionContext) -> TransformersModel:
    """The model on the context's device, in the first dtype in which it passes the trial."""
    dtype = choose_dtype(published, context.device, probe())
    try:
        return _opened(published, dtype, context)
    except FailedTrial:
        if dtype is not None or all(published.kind(name) not in NARROW for name in published):
            raise
        return _opened(published, torch.float32, context)  # what rounds too coarsely for its pieces


def _opened(published: Published, dtype: torch.dtype | None, context: ExecutionContext) -> TransformersModel:
    inner = read_pretrained(published, dtype).to(context.device).eval().requires_grad_(False)
    if context.batch_invariant:
        use_primitives(inner)
    model = TransformersModel(inner)
    transformers_trial.check(model)
    return model


def _context(device: torch.device) -> ExecutionContext:
    """A batch-invariant context where the device has such kernels."""
    return ExecutionContext(device=device, batch_invariant=batch_invariant_on(device.type, {}))
