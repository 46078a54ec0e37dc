from __future__ import annotations

import pytest
from pydantic import ValidationError

from synthe_core.data.spec import DataSpec, SourceSpec


def test_short_and_long_forms_are_the_same() -> None:
    assert DataSpec() == DataSpec(sources="stdlib")
    assert DataSpec(sources="a.txt").sources == (SourceSpec(source="a.txt"),)
    mixed = DataSpec(sources=["a.txt", {"source": "b.txt", "weight": 3, "limit": "2kB"}])
    assert mixed.sources == (SourceSpec(source="a.txt"), SourceSpec(source="b.txt", weight=3.0, limit=2000))
    assert DataSpec(tokenizer="bpe").tokenizer.vocab == 16384
    assert DataSpec(tokenizer={"type": "bpe", "vocab": 512}).tokenizer.vocab == 512


def test_a_resolved_spec_is_read_back_unchanged() -> None:
    spec = DataSpec(sources=["a", {"source": "b", "weight": 2}], tokenizer="bpe", limit="1MiB", validation="c")
    assert DataSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("text", "count"), [("20MB", 20_000_000), ("1.5 GiB", 3 * 2**29), ("7", 7), ("2k", 2000), (12, 12), ("3 B", 3)]
)
def test_amounts_of_bytes(text: object, count: int) -> None:
    assert DataSpec(limit=text).limit == count


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"limit": "20 parsecs"}, "is not a size"),
        ({"limit": 0}, "greater than 0"),
        ({"validation": 1.0}, r"fraction in \[0, 1\)"),
        ({"validation": -0.1}, r"fraction in \[0, 1\)"),
        ({"validation": "1.5"}, r"fraction in \[0, 1\)"),
        ({"sources": []}, "at least 1"),
        ({"sources": [{"source": "a", "weight": 0}]}, "greater than 0"),
        ({"sources": [{"source": "a", "wieght": 1}]}, "wieght"),
        ({"tokenizer": {"type": "bytes", "vocab": 1000}}, "bytes are always 257"),
        ({"tokenizer": {"type": "bpe", "vocab": 100}}, "greater than or equal to 257"),
        ({"sequence": 0}, "greater than or equal to 1"),
    ],
)
def test_bad_keys_are_named(keys: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        DataSpec.model_validate(keys)


def test_a_given_tokenizer_must_have_the_vocabulary_the_recipe_says(tmp_path, monkeypatch):
    from synthe_core.data.prepare import load
    from synthe_core.data.tokenizers import ByteTokenizer
    from synthe_core.errors import InputError

    monkeypatch.setenv("SYNTHE_CACHE", str(tmp_path / "cache"))
    ByteTokenizer().save(tmp_path)
    (tmp_path / "a.txt").write_text("some words and some more " * 50)
    spec = DataSpec(sources=str(tmp_path / "a.txt"), tokenizer={"type": str(tmp_path), "vocab": 300}, sequence=8)
    with pytest.raises(InputError, match="has 257 tokens, and the recipe says 300"):
        load(spec)
