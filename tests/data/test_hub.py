from __future__ import annotations

import time
from pathlib import Path

import huggingface_hub
import pytest

from synthe_core.data.hub import Hub
from synthe_core.data.prepare import load
from synthe_core.data.spec import DataSpec
from synthe_core.errors import InputError, SyntheError, WorkError
from tests.data.conftest import packed, prose, text_of, write_rows


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A folder acme/words that shadows the hub, as `datasets` reads it; one row is empty."""
    folder = tmp_path / "work" / "acme" / "words"
    folder.mkdir(parents=True)
    texts = [prose(i, 300) for i in range(30)]
    write_rows(folder / "train.jsonl", [*texts[:5], "", *texts[5:]])
    write_rows(folder / "test.jsonl", ["held out text"])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return texts


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hub:a/b", ("a/b", None, "train")),
        ("hub:a/b:test", ("a/b", None, "test")),
        ("hub:a/b:en", ("a/b", "en", "train")),
        ("hub:a/b:en:validation", ("a/b", "en", "validation")),
        ("hub:a/b::odd", ("a/b", None, "odd")),
    ],
)
def test_names(name: str, expected: tuple[str, str | None, str]) -> None:
    source = Hub(name, "text")
    assert (source.dataset, source.config, source.split) == expected
    with pytest.raises(InputError, match="names no data set"):
        Hub("hub:", "text")


def test_a_revision_is_part_of_the_name_and_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newest, tagged = Hub("hub:a/b:en", "text"), Hub("hub:a/b@v1.0:en:test", "text")
    assert (tagged.dataset, tagged.revision, tagged.config, tagged.split) == ("a/b", "v1.0", "en", "test")
    assert newest.revision is None
    identities = [Hub(f"hub:a/b{revision}", "text").identity() for revision in ("", "@v1", "@v2")]
    assert all(identities.count(each) == 1 for each in identities)
    (tmp_path / "a@b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert (Hub("hub:a@b", "text").dataset, Hub("hub:a@b", "text").revision) == ("a@b", None)  # a local folder


def test_rows_are_streamed_and_packed(local: list[str]) -> None:
    data = packed("hub:acme/words", sequence=16, validation=0.1)
    both = text_of(data.sources[0].train, data.tokenizer) + text_of(data.validation, data.tokenizer)
    assert sorted(both) == sorted(text.encode() for text in local)
    test = packed("hub:acme/words:test", sequence=4, validation=0)
    assert text_of(test.sources[0].train, test.tokenizer) == [b"held out text"]


def test_a_folder_of_a_data_set_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    for language in ("c", "python"):
        folder = tmp_path / "work" / "acme" / "code" / "data" / language
        folder.mkdir(parents=True)
        write_rows(folder / "train-0.jsonl", [f"{language} {number}" for number in range(5)])
    texts = [piece.text.decode() for piece in Hub("hub:acme/code:data/python", "text").pieces()]
    assert texts == [f"python {number}" for number in range(5)]
    assert len(list(Hub("hub:acme/code", "text").pieces())) == 10
    with pytest.raises(InputError, match="data/cobol"):
        list(Hub("hub:acme/code:data/cobol", "text").pieces())


def test_rows_can_be_skipped(local: list[str]) -> None:
    whole = list(Hub("hub:acme/words", "text").pieces())
    assert list(Hub("hub:acme/words", "text").pieces(skip=11)) == whole[11:]


def test_wrong_split_config_and_field(local: list[str]) -> None:
    for name, keys, message in [
        ("hub:acme/words::tset", {}, "Available splits"),
        ("hub:acme/words:english", {}, "english"),
        ("hub:acme/words", {"field": "body"}, r"hub:acme/words, row 1: unknown field 'body'"),
    ]:
        with pytest.raises(InputError, match=message) as raised:
            packed(name, **keys)
        assert "\n" not in raised.value.message


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"])
def test_offline_mode_is_reported_immediately(variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(variable, "1")
    began = time.monotonic()
    with pytest.raises(WorkError, match="hub:acme/nothing cannot be read: offline mode is on") as raised:
        load(DataSpec(sources="hub:acme/nothing"))
    assert time.monotonic() - began < 10
    assert "local file" in (raised.value.hint or "")


def test_a_hub_without_response(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(self: object, name: str, revision: str | None, timeout: float) -> None:
        raise TimeoutError(f"no answer in {timeout} s")

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.delenv("HF_DATASETS_OFFLINE", raising=False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", silent)
    with pytest.raises(WorkError, match=r"hub:acme/nothing cannot be reached: no answer in 10\.0 s"):
        load(DataSpec(sources="hub:acme/nothing"))


def test_a_broken_connection_reports_its_progress(local: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Rows:
        def __iter__(self) -> object:
            yield from ({"text": text} for text in local[:3])
            raise ConnectionError("reset by peer")

    monkeypatch.setattr(Hub, "open_rows", lambda self: Rows())
    with pytest.raises(SyntheError, match=r"cannot be reached: reset by peer \(after 3 rows\)") as raised:
        packed("hub:acme/words")
    assert isinstance(raised.value, WorkError)
    assert "run again to continue" in (raised.value.hint or "")
