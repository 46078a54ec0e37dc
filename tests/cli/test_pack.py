"""`synthe pack`, `unpack` and `hub` as they are typed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.packing.conftest import write_adapter, write_keys
from tests.paths import ROOT

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_packed_generated_from_and_unpacked(synthe: Run, checkpoint: Path) -> None:
    done = synthe("pack", checkpoint, "-o", "a.synapse")
    assert (done.exit_code, done.stdout) == (0, "a.synapse\n")
    again = synthe("pack", "make", checkpoint, "-o", "b.synapse", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["path"] == "b.synapse"
    assert Path("a.synapse").read_bytes() == Path("b.synapse").read_bytes()
    options = ["--prompt", "x", "-n", "8", "--seed", "1"]
    texts = {synthe("generate", path, *options).stdout for path in (checkpoint, "a.synapse")}
    assert len(texts) == 1
    assert synthe("unpack", "-", "--only", "model", "-o", "out", stdin=done.stdout).stdout == "out\n"
    assert synthe("generate", "out", *options).stdout in texts
    assert synthe("pack", "diff", "a.synapse", "b.synapse").stdout == "no difference\n"
    assert "small.synapse" in synthe("pack", "-", stdin=f"{checkpoint}\n").stdout  # the recipe's name by default


def test_the_text_output(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path)
    synthe("pack", checkpoint, "-o", "a.synapse", "--license", "mit")
    assert synthe("pack", "verify", "a.synapse").stdout.startswith("unsigned: 6 members are unchanged")
    assert synthe("pack", "sign", "a.synapse", "--key", private).stdout == "a.synapse\n"
    result = synthe("pack", "verify", "a.synapse", "--key", public)
    assert result.exit_code == 0 and result.stdout.startswith("signed by SHA256:")
    shown = synthe("pack", "inspect", "a.synapse").stdout
    for line in ("small  (.synapse 2.0, by synthe/", "licence    mit", "signed by  SHA256:", "model.safetensors"):
        assert line in shown, shown
    values = json.loads(synthe("pack", "inspect", "a.synapse", "--json").stdout)["values"]
    assert values["licence"] == "mit" and values["format"] == "synapse"
    synthe("pack", "a.synapse", "-o", "b.synapse", "--license", "apache-2.0")
    assert 'licence: "mit" -> "apache-2.0"' in synthe("pack", "diff", "a.synapse", "b.synapse").stdout


def test_tampering_is_an_error(synthe: Run, checkpoint: Path) -> None:
    synthe("pack", checkpoint, "-o", "a.synapse")
    content = bytearray(Path("a.synapse").read_bytes())
    content[content.find(b"width: 32") + 7] ^= 1
    Path("a.synapse").write_bytes(content)
    for command in (["pack", "verify", "a.synapse"], ["generate", "a.synapse"], ["unpack", "a.synapse"]):
        result = synthe(*command)
        assert result.exit_code == 2 and result.stdout == ""
        assert "recipe.yaml" in result.stderr.splitlines()[-2] and result.stderr.splitlines()[-1].startswith("hint: ")
    assert [path.name for path in Path().iterdir()] == ["a.synapse"]


def test_quantised_from_the_command_line(synthe: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHE_CACHE", str(Path("cache").absolute()))
    data = ["--data", ROOT / "README.md", "--tokens", "64"]
    done = synthe("pack", checkpoint, "-o", "q.synapse", "--quantize", "int8", *data)
    assert done.exit_code == 0 and "int8: " in done.stderr and "bits per byte (" in done.stderr, done.stderr
    values = json.loads(synthe("pack", "inspect", "q.synapse", "--json").stdout)["values"]
    quantization = values["base"]["quantization"]
    assert quantization["kind"] == "int8" and quantization["matrices"] > 0
    assert quantization["bytes_after"] < 0.55 * quantization["bytes_before"]
    assert abs(quantization["loss"]["after"] - quantization["loss"]["before"]) < 0.01
    assert quantization["loss"]["tokens"] == 64
    assert synthe("generate", "q.synapse", "-n", "4").exit_code == 0
    assert "its loss" in synthe("pack", "inspect", "q.synapse").stdout
    result = synthe("pack", "q.synapse", "-o", "r.synapse", "--quantize", "int4")
    assert result.exit_code == 2 and "is quantised already" in result.stderr


def test_a_packed_session_by_its_name(synthe: Run, checkpoint: Path) -> None:
    synthe("generate", checkpoint, "-p", "once", "-n", "3", "--state-out", "chat.safetensors")
    synthe("pack", checkpoint, "-o", "a.synapse", "--session", "chat.safetensors")
    go_on = ["-p", " and", "-n", "6"]
    packed = synthe("generate", "a.synapse", "--state-in", "chat", *go_on)
    assert packed.exit_code == 0
    assert packed.stdout == synthe("generate", checkpoint, "--state-in", "chat.safetensors", *go_on).stdout


def test_the_schema_is_of_the_manifest(synthe: Run, checkpoint: Path) -> None:
    schema = json.loads(synthe("pack", "schema").stdout)
    synthe("pack", checkpoint, "-o", "a.synapse")
    values = json.loads(synthe("pack", "inspect", "a.synapse", "--json").stdout)["values"]
    assert set(schema["required"]) == {"name", "base", "files"}
    assert set(schema["properties"]) == values.keys() - {"signed_by", "knowledge"}
    jsonschema = pytest.importorskip("jsonschema")
    del values["signed_by"], values["knowledge"]
    jsonschema.validate(values, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(values | {"version": "one"}, schema)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["pack", "inspct", "x"], "unknown command 'inspct'", "did you mean 'inspect'?"),
        (["pack", "runs/none"], "no such checkpoint: runs/none", "train one"),
        (["pack", "--quantise", "int8"], "unknown option '--quantise'", "did you mean '--quantize'?"),
        (
            ["pack", "inspect", "none.synapse"],
            "no such file: none.synapse",
            "`synthe pack CHECKPOINT -o FILE` makes one",
        ),
        (["pack", "sign", "none.synapse"], "missing option '--key'", "see `synthe pack sign --help`"),
        (["unpack", "none.synapse"], "no such file: none.synapse", "`synthe pack CHECKPOINT -o FILE` makes one"),
        (["hub", "pull", "nonsense"], "'nonsense' is not a repository name of the hub", "a name is ORG/NAME"),
        (["hub", "psh"], "unknown command 'psh'", "did you mean 'push'?"),
    ],
)
def test_invalid_arguments(synthe: Run, arguments: list[str], message: str, hint: str) -> None:
    result = synthe(*arguments)
    assert result.exit_code == 2 and result.stdout == ""
    first, second = result.stderr.splitlines()
    assert message in first and second.startswith(f"hint: {hint}"), result.stderr


def test_a_folder_without_write_permission(synthe: Run, checkpoint: Path, tmp_path: Path) -> None:
    result = synthe("pack", checkpoint, "-o", "no/such/folder.synapse")
    assert result.exit_code == 2 and "no such folder: no/such" in result.stderr
    write_adapter(tmp_path / "lora", "blocks.9.none")
    result = synthe("pack", checkpoint, "-o", "a.synapse", "--adapter", "lora")
    assert result.exit_code == 2 and "which the model has not" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["lora"]
