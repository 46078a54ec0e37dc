"""A model of transformers read from a folder: nothing is downloaded, no pickle is read, no code of the folder runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from synthe_core.errors import InputError
from synthe_core.hardware.placement import choose_precision
from synthe_core.hardware.probe import Hardware
from synthe_core.interop.huggingface.published import Published
from synthe_core.interop.huggingface.remote_code import check_runs_without_code
from synthe_core.storage.finite import check_finite

SLACK = 1 << 30  # bytes of tables that a model may have beside its weights
NARROW = ("BF16", "F16")


def library(path: Path) -> Any:
    """The module transformers. InputError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"{path} is a model of transformers, which is not installed", "pip install 'synthe[hf]' brings it"
        ) from None
    return transformers


def choose_dtype(published: Published, device: torch.device, hardware: Hardware) -> torch.dtype | None:
    """The dtype to compute in: None for that of the files, where products are faster in it or float32 needs more
    memory than there is; else float32."""
    numbers = {name: math.prod(published.shape(name)) for name in published}
    if not numbers or published.kind(max(numbers, key=numbers.__getitem__)) not in NARROW:
        return None
    if device.type == "cpu" and hardware.available and 4 * sum(numbers.values()) > hardware.available:
        return None
    return None if choose_precision("auto", device.type, hardware).value == "bfloat16" else torch.float32


def read_pretrained(published: Published, dtype: torch.dtype | None = None) -> Any:
    """The model of transformers with every weight from its files, in `dtype` (None: as stored)."""
    transformers, path = library(published.path), published.path
    check_runs_without_code(str(path), published.config.values)
    log = transformers.utils.logging
    before, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        check_sizes(published)
        inner, info = transformers.AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype or "auto",
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=False,  # if it is not given, a terminal is asked
        )
    except InputError:
        raise
    except Exception as error:  # the library raises errors of many kinds
        raise InputError(
            f"{path} cannot be loaded: {' '.join(str(error).split())[:200]}", "does transformers load it?"
        ) from None
    finally:
        log.set_verbosity(before)
        if shown:
            log.enable_progress_bar()
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path} has no tensor {missing[0]}, which its config.json asks for", "fetch every file")
    if info.get("mismatched_keys"):
        raise InputError(f"{path}: config.json and the weights are of two models", "copy the folder again")
    for name, tensor in inner.state_dict().items():
        check_finite(name, tensor, path)
    return inner


def check_sizes(published: Published) -> None:
    """InputError if config.json describes a model that is much larger than the weights: memory is allocated only for
    what the files hold. Its own tables, such as masks, may take as much, and SLACK."""
    path, sketch = published.path, _sketch(published)
    stored = sum(math.prod(published.shape(name)) for name in published)
    own = sum(parameter.numel() for parameter in sketch.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in sketch.buffers())
    if own > 2 * stored or tables > SLACK + 4 * stored:
        raise InputError(
            f"{path}: config.json describes a model of {own:,} numbers and {tables:,} bytes of tables, and the files "
            f"hold {stored:,} numbers",
            "config.json and the weights are of two models: copy the folder again",
        )


def _sketch(published: Published) -> Any:
    """The model without memory for its weights."""
    transformers = library(published.path)
    config = transformers.AutoConfig.from_pretrained(published.path, local_files_only=True, trust_remote_code=False)
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)
