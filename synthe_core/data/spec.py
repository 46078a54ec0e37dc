"""The `data` part of a recipe."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from synthe_core.layers.learner import Spec
from synthe_core.units import parse_size


def _size(value: Any) -> Any:
    return parse_size(value) if isinstance(value, str) else value


ByteCount = Annotated[int, BeforeValidator(_size), Field(gt=0)]


class SourceSpec(Spec):
    """One source of a mixture: `weight` is its share of the training sequences, relative to the other sources'."""

    source: str
    weight: float = Field(default=1.0, gt=0)
    field: str | None = None
    limit: ByteCount | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value


class TokenizerSpec(Spec):
    """`bytes`, `bpe` (trained on the corpus at hand), a tokenizer.json, or a name of the hub.

    vocab: the size that `bpe` learns; of another tokenizer its size, so that a recipe's parameters can be counted
    without fetching it.
    """

    type: str = "bytes"
    vocab: int | None = Field(default=None, ge=257)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"type": value}
        if isinstance(value, dict) and value.get("type") == "bpe" and value.get("vocab") is None:
            value = {**value, "vocab": 16384}
        return value

    @model_validator(mode="after")
    def _bytes_are_257(self) -> TokenizerSpec:
        if self.vocab is not None and self.type == "bytes":
            raise PydanticCustomError("tokenizer", "`vocab` goes with `bpe` or a tokenizer file; bytes are always 257")
        return self


def _as_list(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)  # the name of a folder
    return [value] if isinstance(value, str | dict | SourceSpec) else value


def _fraction_or_source(value: Any) -> Any:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value
    if isinstance(value, int | float) and not 0 <= value < 1:
        raise PydanticCustomError(
            "validation", "validation is a fraction in [0, 1) or a source, and {value} is neither", {"value": value}
        )
    return value


def _labels(value: Any) -> Any:
    if isinstance(value, str) and value != "path" and not (value.startswith("field:") and value != "field:"):
        raise PydanticCustomError("labels", "labels are `path` or `field:NAME`, not '{value}'", {"value": value})
    return value


class DataSpec(Spec):
    """What is read, how it becomes tokens, and how long a training sequence is.

    sources:    `stdlib`, `listops[:KEY=VALUE,...]` (see `data.listops`), a file, folder or glob, one of those by a URL
                (s3://, gs://, hf:// and other schemes of fsspec), `hub:NAME[@revision][:config or folder][:split]`, or
                a list of these (see SourceSpec).
    tokenizer:  see TokenizerSpec.
    sequence:   tokens per training sequence; of conversations, preferences and ratings, the most tokens of a row,
                1,024 unless it is stated.
    validation: fraction of each source's documents for validation, or a source that is all validation.
    field:      the field of rows of tables and the hub that holds the text.
    stream:     whether text is read while training, from the hub, URLs or files, with a few shards of tokens on disk,
                instead of being tokenized whole before. Documents for validation are the first that are held out.
    limit:      at most this many bytes of text are read from each source ("20MB"); None = all.
    labels:     for an encoder, what each document's class is: `path`, the first folder below the source (of `stdlib`
                the package, of `listops` the value), or `field:NAME`, that field of rows of tables and the hub.
    columns:    of conversations, preferences and ratings: names of columns by what they stand for, where they are not
                the usual ones: {prompt: question, chosen: better, rejected: worse}.
    trained:    of conversations, what is trained on: every answer of the assistant, the last one, or all text.
    """

    sources: Annotated[tuple[SourceSpec, ...], BeforeValidator(_as_list), Field(min_length=1)] = (
        SourceSpec(source="stdlib"),
    )
    tokenizer: TokenizerSpec = TokenizerSpec()
    sequence: int = Field(default=256, ge=1)
    validation: Annotated[float | str, BeforeValidator(_fraction_or_source)] = 0.05
    field: str = "text"
    limit: ByteCount | None = None
    stream: bool = False
    labels: Annotated[str | None, BeforeValidator(_labels)] = None
    columns: dict[str, str] = Field(default={})
    trained: Literal["assistant", "last", "all"] = "assistant"
