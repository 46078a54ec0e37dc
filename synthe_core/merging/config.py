"""The configuration of a merge: mergekit's YAML with a few more keys. The command line makes the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from synthe_core.errors import InputError, closest, unknown
from synthe_core.merging.inputs import is_adapter
from synthe_core.merging.method import Method
from synthe_core.merging.parameters import check
from synthe_core.storage.yaml_reader import YamlSource, read_yaml

Form = Literal["model", "adapter", "factors"]
Dtype = Literal["float32", "bfloat16", "float16", "float64"]
Parameters = dict[str, Any]


class _Keys(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class InputSpec(_Keys):
    """One model: a path, an id of the hub, or BASE+ADAPTER."""

    model: str
    parameters: Parameters = {}


class SourceSpec(InputSpec):
    """Layers of a model: `layer_range` is [first, end)."""

    layer_range: tuple[int, int]

    @model_validator(mode="after")
    def _rises(self) -> SourceSpec:
        if not 0 <= self.layer_range[0] < self.layer_range[1]:
            raise ValueError(f"layer_range {list(self.layer_range)} is empty")
        return self


class SliceSpec(_Keys):
    """Layers of the result, merged from an equal number of layers of each source."""

    sources: list[SourceSpec] = Field(min_length=1)
    parameters: Parameters = {}

    @model_validator(mode="after")
    def _equal(self) -> SliceSpec:
        if len({source.layer_range[1] - source.layer_range[0] for source in self.sources}) > 1:
            raise ValueError("the sources of a slice have different numbers of layers")
        return self


class TokenizerSpec(_Keys):
    """`source` is base, union, or the path of a model or tokenizer.json whose vocabulary the result gets."""

    source: str = "union"
    pad_to_multiple_of: int | None = Field(None, ge=1)


class MergeSpec(_Keys):
    """A merge. `seed`, `as`, `rank` and `name` are ours; the other keys are mergekit's."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    merge_method: str
    base_model: str | None = None
    models: list[InputSpec] | None = Field(None, min_length=1)
    slices: list[SliceSpec] | None = Field(None, min_length=1)
    parameters: Parameters = {}
    dtype: Dtype | None = None
    out_dtype: Dtype | None = None
    tokenizer_source: str | None = None
    tokenizer: TokenizerSpec | str | None = None
    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    seed: int = Field(0, ge=0, lt=2**62)
    form: Form | None = Field(None, alias="as")
    rank: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _one_or_the_other(self) -> MergeSpec:
        if (self.models is None) == (self.slices is None):
            raise ValueError("give either `models` or `slices`")
        if self.tokenizer is not None and self.tokenizer_source is not None:
            raise ValueError("give either `tokenizer` or `tokenizer_source`")
        return self

    @property
    def vocabulary(self) -> TokenizerSpec | None:
        """What is source of the tokenizer."""
        source = self.tokenizer if self.tokenizer is not None else self.tokenizer_source
        return TokenizerSpec(source=source) if isinstance(source, str) else source

    @property
    def inputs(self) -> list[InputSpec]:
        """Every model to merge, in order, each once."""
        listed = self.models or [source for piece in self.slices or [] for source in piece.sources]
        return list({each.model: each for each in listed}.values())

    def to_yaml(self) -> str:
        """The configuration for `synthe merge run`."""
        plain = self.model_dump(mode="json", exclude_defaults=True, by_alias=True)
        return yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=120)

    def checked(self, prefix: str = "") -> MergeSpec:
        """Returns itself. InputError for a parameter that the method does not have, or that is out of range."""
        method = Method(self.merge_method)
        check(method, self.parameters, prefix)
        for each in self.models or []:
            check(method, each.parameters, f"{prefix}{each.model}: ")
        for number, piece in enumerate(self.slices or [], start=1):
            check(method, piece.parameters, f"{prefix}slice {number}: ")
            for source in piece.sources:
                check(method, source.parameters, f"{prefix}slice {number}, {source.model}: ")
        return self


def spec_of(
    method: Method,
    models: Sequence[str],
    options: Mapping[str, Any],
    *,
    base: str | None = None,
    dtype: str | None = None,
    form: str | None = None,
    rank: int | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
) -> MergeSpec:
    """A merge from command-line arguments. Parameters in `options` are text: one value, or one for each model.

    Without `base`, a method that needs one takes the first model, unless that is an adapter, which names its own base.
    """
    names = list(models)
    if not names:
        raise InputError("no models are named", f"synthe merge {method.name} MODEL MODEL ...")
    if duplicate := next((name for name in names if names.count(name) > 1), None):
        raise InputError(f"{duplicate} is named twice", "give it a weight of 2 instead")
    if method.needs_base and base is None and not is_adapter(names[0]):
        base = names.pop(0)
    shared, own = _parameters(method, names, options)
    values: dict[str, Any] = {
        "merge_method": method.name,
        "base_model": base,
        "models": [{"model": name, "parameters": parameters} for name, parameters in zip(names, own, strict=True)],
        "parameters": shared,
        "dtype": dtype,
        "as": form,
        "rank": rank,
        "tokenizer": tokenizer,
        "seed": seed,
    }
    for key, choices in (("dtype", get_args(Dtype)), ("as", get_args(Form))):
        if values[key] is not None and values[key] not in choices:
            raise unknown(f"value of --{key}", values[key], choices)
    return MergeSpec.model_validate(values).checked()


def _parameters(
    method: Method, names: Sequence[str], options: Mapping[str, Any]
) -> tuple[Parameters, list[Parameters]]:
    """The parameters for all models, and those of each model."""
    shared: Parameters = {}
    own: list[Parameters] = [{} for _ in names]
    for name, text in options.items():
        parsed = [_value(part) for part in str(text).split(",")]
        if len(parsed) == 1:
            shared[name] = parsed[0]
        elif not method.parameter(name).each:
            raise InputError(
                f"--{name} {text}: one value is for all models", f"{name}: {method.parameter(name).description}"
            )
        elif len(parsed) != len(names):
            raise InputError(
                f"--{name} has {len(parsed)} values for {len(names)} models", f"they are {', '.join(names)}"
            )
        else:
            for parameters, value in zip(own, parsed, strict=True):
                parameters[name] = value
    return shared, own


def _value(text: str) -> Any:
    """A number, true or false, or a word."""
    try:
        return yaml.safe_load(text) if text.strip().lower() in ("true", "false") else float(text)
    except ValueError:
        return text


def load(path: Path) -> MergeSpec:
    """Reads a merge recipe. InputError with file, line and column. Paths are relative to the working folder."""
    source = read_yaml(path)
    try:
        spec = MergeSpec.model_validate(source.values)
    except ValidationError as error:
        raise _explain(error, source) from None
    return spec.checked(f"{path}: ")


def _explain(error: ValidationError, source: YamlSource) -> InputError:
    lines, hint = [], None
    for fault in error.errors(include_url=False)[:5]:
        path = [key for key in fault["loc"] if not (isinstance(key, str) and key[:1].isupper())]
        shown = ".".join(map(str, path))
        message = str(fault.get("ctx", {}).get("error", fault["msg"]))
        if fault["type"] == "extra_forbidden":
            near = closest(str(path[-1]), _keys_at(path[:-1]))
            message = f"unknown key '{shown}'"
            hint = hint or (f"did you mean '{near}'?" if near else f"known: {', '.join(_keys_at(path[:-1]))}")
        elif fault["type"] == "missing":
            message = f"missing key '{shown}'"
        elif shown:
            message = f"{shown}: {message[:1].lower()}{message[1:]}"
        lines.append(f"{source.locate(path)}: {message}")
    return InputError(lines, hint or "recipes/merge/ has examples of every key")


def _keys_at(path: Sequence[str | int]) -> list[str]:
    spec: Any = MergeSpec
    for key in path:
        if isinstance(key, str) and key in spec.model_fields:
            inner = _specs(spec.model_fields[key].annotation)
            spec = inner[0] if inner else spec
    return [field.alias or name for name, field in spec.model_fields.items()]


def _specs(annotation: Any) -> list[Any]:
    if isinstance(annotation, type) and issubclass(annotation, _Keys):
        return [annotation]
    return [spec for part in get_args(annotation) for spec in _specs(part)]
