"""A model of transformers from its config and tensors, and its tensors under their published names.

Nothing is downloaded, no pickle is read and no code of a folder runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from synthe_core.errors import InputError, closest
from synthe_core.hardware.placement import choose_precision
from synthe_core.hardware.probe import Hardware
from synthe_core.interop.huggingface.published import Config, check_depth
from synthe_core.interop.huggingface.remote_code import check_runs_without_code
from synthe_core.storage.finite import check_finite

SLACK = 1 << 30  # bytes of tables that a model may have beside its weights
FLOAT = "__float__"
SHAPES = "synthe-shapes"  # the name of `experts_without_storage` in transformers' registry
IMPLEMENTATIONS = ("attn_implementation", "experts_implementation")
"""Keys of a config that choose code, which a name of the hub may mean."""
NUMBER = re.compile(r"\.(\d+)\.")
NARROW = (torch.bfloat16, torch.float16)


def library(path: object) -> Any:
    """The module transformers. InputError if it is not installed."""
    try:
        import transformers
    except ImportError:
        raise InputError(
            f"{path} is a model of transformers, which is not installed", "pip install 'synthe[hf]' brings it"
        ) from None
    return transformers


def stored_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of the largest tensor."""
    return max((tensors[name] for name in tensors), key=Tensor.numel).dtype


def choose_dtype(tensors: Mapping[str, Tensor], device: torch.device, hardware: Hardware) -> torch.dtype:
    """The dtype to compute in: that of the tensors, where products are faster in it or float32 needs more memory than
    there is; else float32."""
    stored, numbers = stored_dtype(tensors), sum(tensors[name].numel() for name in tensors)
    if stored not in NARROW:
        return torch.float32
    if device.type == "cpu" and 0 < hardware.available < 4 * numbers:
        return stored
    return stored if choose_precision("auto", device.type, hardware).value == "bfloat16" else torch.float32


def read_pretrained(config: dict[str, Any], tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> Any:
    """The model of `config` with every weight from `tensors`, in `dtype`. InputError if one is missing, of another
    shape or not finite, or if the model is much larger than they are. path: theirs, for messages."""
    values = dict(tensors)
    with errors_of(path):
        check_sizes(config, values, path)
        parsed, kind = _class_of(config, path)
        inner, info = kind.from_pretrained(
            None, config=parsed, state_dict=dict(values), dtype=dtype, output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, and refused below by name
        )  # fmt: skip
    if missing := sorted(info["missing_keys"]):
        raise InputError(f"{path} has no tensor {missing[0]}, which its config.json asks for", "fetch every file")
    check_layers(inner, info.get("unexpected_keys") or (), path)
    for name, stored, own in sorted(info.get("mismatched_keys") or ()):
        raise InputError(
            f"{path} has {name} {list(stored)}, and by its config.json that should be {list(own)}",
            "config.json and the weights are of two models: copy the folder again",
        )
    mapped = {tensor.untyped_storage().data_ptr() for tensor in values.values()}
    for name, tensor in inner.state_dict(keep_vars=True).items():
        check_finite(name, tensor, path)
        if tensor.untyped_storage().data_ptr() in mapped:  # a mapping of a file, which somebody may cut short
            tensor.data = tensor.data.clone()
    return inner.eval()


def from_config(config: dict[str, Any], path: object = "config.json") -> Any:
    """The model of `config` with initial weights, on torch's default device, in float32."""
    with errors_of(path):
        parsed, kind = _class_of(config, path)
        inner = kind._from_config(parsed, dtype=torch.float32)
        if inner.get_input_embeddings().weight.is_meta and inner._can_set_experts_implementation():
            transformers = library(path)
            transformers.integrations.moe.ExpertsInterface.register(SHAPES, experts_without_storage)
            inner.set_experts_implementation(SHAPES)
        return inner


def experts_without_storage(module: Any, hidden: Tensor, experts: Tensor, weights: Tensor) -> Tensor:
    """The shapes that a layer of experts computes from hidden [N, D], whichever K experts [N, K] each token has: those
    of one expert over all pairs. Which are chosen depends on values, and a model without storage has none."""

    def product(x: Tensor, weight: Tensor) -> Tensor:
        return x @ (weight[0] if module.is_transposed else weight[0].t())

    pairs = hidden.repeat_interleave(experts.shape[-1], dim=0)
    if module.has_gate:
        inner = module._apply_gate(product(pairs, module.gate_up_proj))
    else:
        inner = module.act_fn(product(pairs, module.up_proj))
    outputs = product(inner, module.down_proj) * weights.reshape(-1, 1)
    return outputs.view(*experts.shape, -1).sum(1).to(hidden.dtype)


def check_sizes(config: dict[str, Any], tensors: Mapping[str, Tensor], path: object) -> None:
    """InputError if a config describes a model that is much larger than the tensors: memory is allocated only for what
    there is. Its own tables, such as masks, may take as much, and SLACK."""
    check_depth(Config(Path(f"{path}/config.json"), config), len(tensors))  # before a sketch of as many layers is made
    with torch.device("meta"):
        sketch = from_config(config, path)
    stored = sum(math.prod(tensors[name].shape) for name in tensors)
    own = sum(parameter.numel() for parameter in sketch.parameters())
    tables = sum(buffer.numel() * buffer.element_size() for buffer in sketch.buffers())
    if own > 2 * stored or tables > SLACK + 4 * stored:
        raise InputError(
            f"{path}: config.json describes a model of {own:,} numbers and {tables:,} bytes of tables, and the files "
            f"hold {stored:,} numbers",
            "config.json and the weights are of two models: copy the folder again",
        )


def check_layers(inner: Any, unexpected: Iterable[str], path: object) -> None:
    """InputError for a further layer like those of the model.

    One with tensors of its own predicts further tokens, and the model has no use for it. Tensors outside of layers may
    belong to another modality.
    """
    known = {NUMBER.sub(".N.", name) for name in inner.state_dict()}
    layers: dict[str, list[str]] = {}
    for name in sorted(unexpected):
        if number := NUMBER.search(name):
            layers.setdefault(name[: number.end()], []).append(name)
    for names in layers.values():
        if all(NUMBER.sub(".N.", name) in known for name in names):
            raise InputError(
                f"{path} has a tensor {names[0]}, which the model has not by its config.json",
                "config.json and the weights are of two models: copy the folder again",
            )


def check_plain(config: dict[str, Any], path: object) -> None:
    """InputError for a config of quantised weights, whose tensors are not those of its layers."""
    settings = config.get("quantization_config")
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else settings
        raise InputError(
            f"{path} has quantised weights ({str(method)[:80]}: quantization_config in config.json)",
            "use the original model, or a GGUF file of it, which may be quantised",
        )


@torch.no_grad()
def load_tensors(inner: Any, config: dict[str, Any], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Gives the model the values of its published `tensors`; its parameters stay the same objects."""
    dtype, device = next(inner.parameters()).dtype, next(inner.parameters()).device
    loaded = read_pretrained(config, tensors, path, dtype)
    inner._weight_conversions = getattr(loaded, "_weight_conversions", None)  # by which `published_tensors` renames
    values = loaded.state_dict()
    for name, tensor in inner.state_dict(keep_vars=True).items():
        tensor.data = values.pop(name).to(device=device)
    inner.tie_weights()


def published_tensors(inner: Any) -> dict[str, Tensor]:
    """The model's tensors under the names, and in the shapes, in which transformers saves them: a shared one once."""
    from transformers.core_model_loading import revert_weight_conversion

    seen: set[int] = set()
    own: dict[str, Tensor] = {}
    tied = getattr(inner, "all_tied_weights_keys", None) or {}
    for name, tensor in inner.state_dict(keep_vars=True).items():
        if id(tensor) not in seen and name not in tied:
            seen.add(id(tensor))
            own[name] = tensor.detach()
    return dict(revert_weight_conversion(inner, own))


def with_floats(value: Any) -> Any:
    """A value of a config.json with its numbers that JSON has not, which are written as {"__float__": "Infinity"}."""
    if isinstance(value, dict):
        if value.keys() == {FLOAT} and value[FLOAT] in ("Infinity", "-Infinity", "NaN"):
            return float(value[FLOAT])
        return {key: with_floats(each) for key, each in value.items()}
    return [with_floats(each) for each in value] if isinstance(value, list) else value


def without_floats(value: Any) -> Any:
    """The inverse of `with_floats`, by which a config may be written as strict JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return {FLOAT: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    if isinstance(value, dict):
        return {key: without_floats(each) for key, each in value.items()}
    return [without_floats(each) for each in value] if isinstance(value, list) else value


@contextmanager
def quiet(transformers: Any) -> Iterator[None]:
    """Within the block transformers writes no warnings and shows no progress."""
    log = transformers.utils.logging
    before, shown = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(before)
        if shown:
            log.enable_progress_bar()


@contextmanager
def errors_of(path: object) -> Iterator[None]:
    """Within the block the library is quiet, and its errors, which are of many kinds, are an InputError."""
    try:
        with quiet(library(path)):
            yield
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{path} cannot be loaded: {' '.join(str(error).split())[:200]}", "does transformers load it?"
        ) from None


def _class_of(config: dict[str, Any], path: object) -> tuple[Any, type[Any]]:
    """The parsed config, and the class of its causal language model. InputError for one that transformers lacks."""
    transformers = library(path)
    check_runs_without_code(str(path), config)
    check_plain(config, path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in transformers.CONFIG_MAPPING:
        near = closest(str(kind)[:80], transformers.CONFIG_MAPPING.keys())
        raise InputError(
            f"{path}: transformers {transformers.__version__} has no model_type {str(kind)[:80]!r}",
            ("" if near is None else f"did you mean '{near}'? ")
            + "a newer transformers may have it; models with code of their own (trust_remote_code) are not run",
        )
    chosen = {key: value for key, value in config.items() if not (key.startswith("_") or key in IMPLEMENTATIONS)}
    parsed = transformers.CONFIG_MAPPING[kind].from_dict(with_floats(chosen))
    models = transformers.MODEL_FOR_CAUSAL_LM_MAPPING
    if type(parsed) not in models:
        raise InputError(f"{path}: {kind} is no causal language model of transformers", "others cannot be run")
    return parsed, models[type(parsed)]
