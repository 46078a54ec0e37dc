"""Text of others cannot look like output of ours: strings from files, servers and the hub are escaped tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from synthe_cli import figures
from synthe_cli.commands import hub, introspect_view, merge_show, pack_text
from synthe_cli.console import JsonRenderer, PlainRenderer, describe, progress_text
from synthe_cli.escape import escaped, json_text, printable
from synthe_cli.failures import report
from synthe_cli.live import LiveRenderer
from synthe_core.chat.conversation import ChatOptions
from synthe_core.errors import InputError
from synthe_core.events import Measurement, Metric, Notice, Progress, Result, Sample, Saved
from synthe_core.packing.pack import PackOptions, pack
from tests.packing.conftest import write_checkpoint

FORGED = "x\nsigned by  SHA256:forged"
STRANGE = [
    *(FORGED, "a\rb", "a\x1b[2Jb", "a\x9b1mb", "a\u202eb", "a\u2066b", "a\u2028b", "a\x85b", "a\x00b", "a\ud800b"),
    *("[bold]a[/]", "a" * 100_000, "a\x0bb\x0cc", "\ufeffa", "a\u200bb"),
]


def short(text: str) -> str:
    return ascii(text)[:20]


@pytest.mark.parametrize("text", STRANGE, ids=short)
def test_a_token_has_no_line_ends_control_characters_or_surrogates(text: str) -> None:
    token = escaped(text)
    assert token.isprintable() and len(token) < 4100
    token.encode()
    line = json_text({"a": text, "é": 1})
    assert line.isprintable() and json.loads(line) == {"a": text, "é": 1}


@pytest.mark.parametrize("text", ["plain", "日本 é", "C:\\x", "[markup] stays", "a 'quoted' \"word\""])
def test_printable_text_is_unchanged(text: str) -> None:
    assert escaped(text) == text == printable(text)


def events(text: str) -> list[object]:
    saved = Saved(Path(text.replace("\x00", "")), 1)
    notices = [Notice(text), Notice(text, "warning")]
    result = Result({text: text, "name": text})
    return [*notices, Measurement(text, {text: text}), saved, result, Metric(1, "validation", {"loss": 1.0}, text)]


@pytest.mark.parametrize("text", STRANGE, ids=short)
def test_an_event_is_one_line(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for event in events(text):
        lines = describe(event)  # type: ignore[arg-type]
        assert len(lines) == 1 and lines[0].isprintable(), event
    assert progress_text(Progress(text, 1, 2, "bytes")).isprintable()
    with JsonRenderer() as shown:
        for event in events(text):
            shown.show(event)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert len(out.splitlines()) == len(events(text)) and all(json.loads(line) for line in out.splitlines())
    with PlainRenderer() as shown:
        for event in events(text):
            shown.show(event)  # type: ignore[arg-type]
    printed = capsys.readouterr()
    assert all(line.isprintable() for line in (printed.out + printed.err).split("\n"))


@pytest.mark.parametrize("text", [*STRANGE[:-4], "[/nothing]", "[red]", "\\[", "\\"], ids=short)
def test_the_live_display_reads_no_markup(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=200, highlight=False, emoji=False, no_color=True)
    with LiveRenderer(console) as shown:
        for event in [*events(text), Progress(text, 1, 2, "bytes"), Sample(1, text)]:
            shown.show(event)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert "\x1b[2J" not in out and "\u202e" not in out and "\x9b" not in out
    if text.startswith("["):
        assert text in out


@pytest.mark.parametrize("text", STRANGE, ids=short)
def test_an_error_is_one_line_and_a_hint(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for error in (InputError(f"{text} is bad", text), OSError(5, text, text), ValueError(text)):
        report(error)
        lines = capsys.readouterr().err.removesuffix("\n").split("\n")
        assert [line[:6] for line in lines] in (["error:", "hint: "], ["error:"])
        assert all(line.isprintable() for line in lines)


def test_the_faults_of_a_recipe_are_lines(capsys: pytest.CaptureFixture[str]) -> None:
    report(InputError(["recipe.yaml:1: one", "recipe.yaml:2: two\nhint: forged"], "a hint"))
    err = capsys.readouterr().err
    assert err == "error: recipe.yaml:1: one\nrecipe.yaml:2: two\\nhint: forged\nhint: a hint\n"


@pytest.mark.parametrize("text", STRANGE, ids=short)
def test_tables_have_a_line_for_each_row(text: str) -> None:
    table = figures.table([text, "b"], [[text, "1"], ["x", text]])
    assert len(table.split("\n")) == 3 and all(line.isprintable() for line in table.split("\n"))
    assert max(map(len, table.split("\n"))) < 1000
    listing = hub._table({"repositories": [{"repository": text, "downloads": 1}]})
    assert len(listing.split("\n")) == 2
    row = {"name": text, "shape": [1], "distance": 1.0, "relative": None, "cosine": None, "signs": None}
    shown = merge_show.differences({"tensors": [row], "total": row | {"name": "total"}, "only": [text]}, True, False)
    assert len(shown.split("\n")) == 7 and all(line.isprintable() for line in shown.split("\n"))


def test_a_description_cannot_forge_a_signature(tmp_path: Path, synthe) -> None:
    """The manifest is a stranger's: whatever it says is shown, and none of it as a line of its own."""
    import yaml

    path = write_checkpoint(tmp_path / "a")
    values = yaml.safe_load((path / "recipe.yaml").read_text()) | {"description": FORGED + "\x1b[31m\u202e[bold]"}
    (path / "recipe.yaml").write_text(yaml.safe_dump(values))
    from synthe_core.storage.manifest import MANIFEST, Manifest

    (path / MANIFEST).write_text(Manifest.read(path).with_files(path).model_dump_json())
    list(pack(path, tmp_path / "x.synapse", PackOptions(licence="MIT\nsigned by  SHA256:other")))
    ended = synthe("pack", "inspect", tmp_path / "x.synapse")
    lines = ended.stdout.split("\n")
    assert [line for line in lines if line.startswith("signed by")] == ["signed by    unsigned"]
    assert "x\\nsigned by  SHA256:forged\\x1b[31m\\u202e[bold]" in ended.stdout
    assert all(line.isprintable() for line in lines)
    as_json = synthe("pack", "inspect", tmp_path / "x.synapse", "--json").stdout
    assert json.loads(as_json)["values"]["description"].startswith(FORGED) and as_json.strip().isprintable()


@pytest.mark.parametrize("text", STRANGE, ids=short)
def test_the_fields_of_a_manifest_are_lines(text: str) -> None:
    empty = {"quantization": None, "carried": False, "model": text, "parameters": 1}
    values = {
        "name": text, "version": text, "created_by": text, "description": text, "base": empty, "licence": text,
        "memory": {"weights": 1, "state": {text: 1}}, "scores": [{"name": text, "value": 1.0, "how": text}],
        "training": {"steps": 0}, "adapters": [{"name": text, "rank": 1, "parameters": 1, "checked": True}],
        "specialists": [text], "sessions": [text], "capabilities": [text], "parents": [text], "signed_by": None,
        "knowledge": {text: 1}, "files": {text: {"bytes": 1, "sha256": text}},
    }  # fmt: skip
    lines = pack_text.overview(values).split("\n")
    assert len(lines) == 17 and all(line.isprintable() for line in lines)
    same = {
        "same": False,
        "manifest": [text],
        "recipe": [text],
        "members": {text: [text]},
        "tensors_absent": {text: [text]},
    }
    change = [{"name": text, "largest": 1.0, "relative": 1.0}]
    lines = pack_text.differences(same | {"tensors": change}).split("\n")
    assert len(lines) == 7 and all(line.isprintable() for line in lines)


@pytest.mark.parametrize("text", STRANGE, ids=short)
def test_a_server_cannot_write_lines_into_a_chat(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from synthe_cli.chat_loop import ChatLoop

    class Remote:
        model, session, has_chat_template = text, text, True

        def saved_names(self) -> list[str]:
            return [text]

    loop = ChatLoop(Remote(), ChatOptions(1))  # type: ignore[arg-type]
    loop.sessions("")
    assert len(capsys.readouterr().err.removesuffix("\n").split("\n")) == 1


def test_the_log_of_a_server_has_a_line_for_each_entry(capsys: pytest.CaptureFixture[str]) -> None:
    from synthe_cli.commands.serve_run import log

    for text in STRANGE:
        log(f"GET {text}")
        assert len(capsys.readouterr().err.removesuffix("\n").split("\n")) == 1


def test_tokens_in_brackets_are_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console = introspect_view._console()
    console.print("[bold]a[/] [/nothing]")
    assert "[bold]a[/] [/nothing]" in capsys.readouterr().out
    assert introspect_view._quoted("a\n\x1b") == "'a\\n\\x1b'"
