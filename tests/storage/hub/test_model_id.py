"""Ids of models of the hub, and what is a path instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.storage.hub.model_id import HubId, hub_id


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Qwen/Qwen3.5-0.8B", HubId("Qwen/Qwen3.5-0.8B")),
        ("org/name@v1.0", HubId("org/name", revision="v1.0")),
        ("org/name@refs/pr/1", HubId("org/name", revision="refs/pr/1")),
        ("org/name:Q4_K_M", HubId("org/name", quant="Q4_K_M")),
        ("org/name:UD-Q4_K_XL@main", HubId("org/name", quant="UD-Q4_K_XL", revision="main")),
        ("org/name/file.gguf", HubId("org/name", file="file.gguf")),
        ("org/name/folder/my file.gguf@v2", HubId("org/name", file="folder/my file.gguf", revision="v2")),
        ("hub:org/name", HubId("org/name")),
    ],
)
def test_ids(text: str, expected: HubId) -> None:
    assert HubId.parse(text) == expected
    assert str(expected) == text.removeprefix("hub:")


@pytest.mark.parametrize(
    "text",
    ["name", "", "/org/name", "./org/name", "../org/name", "~/org/name", "org/../name", "org/name/../x",
     "org/name@../x",
     "org/name@", "org/name/config.json", "no/such/run",
     "org/name:", "org//name", "org/name\n", "org/na me", "-x/y", "org\\name"],
)  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    assert HubId.parse(text) is None


def test_a_local_path_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_id("org/name") == HubId("org/name")
    assert hub_id("runs/tiny") is None and hub_id("exports/x") is None  # folders of synthe, which need not exist
    assert hub_id("models/x.gguf") is None and hub_id("org/name/x.gguf") is not None
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_id("org/name") is None
    assert hub_id("org/mane") is None, "a mistyped path is not looked for on the hub"
    assert hub_id("hub:org/name") == HubId("org/name")
    with pytest.raises(InputError, match="is no model of the hub"):
        hub_id("hub:org")
