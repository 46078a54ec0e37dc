"""Which format a path is of."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.storage.path_format import format_of


def test_a_folder_without_a_config_is_a_run(tmp_path: Path) -> None:
    assert format_of(tmp_path) is None


@pytest.mark.parametrize("own", ["manifest.json", "adapter_config.json"])
def test_a_folder_with_a_config_is_published_unless_it_is_ours(tmp_path: Path, own: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert format_of(tmp_path) == "huggingface"
    (tmp_path / own).write_text("{}")
    assert format_of(tmp_path) is None


def test_an_unpacked_file_is_known_by_its_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"format": "synapse"}')
    assert format_of(tmp_path) == "synapse"


@pytest.mark.parametrize(("content", "kind"), [(b"GGUF\x03", "gguf"), (b"PK", "synapse"), (b"", "synapse")])
def test_a_file_is_known_by_its_first_bytes(tmp_path: Path, content: bytes, kind: str) -> None:
    (tmp_path / "model").write_bytes(content)
    assert format_of(tmp_path / "model") == kind


def test_a_path_that_does_not_exist_has_no_format(tmp_path: Path) -> None:
    assert format_of(tmp_path / "missing") is None
