"""Two processes that write to one place: one whole result, and one refusal in a line or a second result. After a kill:
no half result, and nothing that the next writer leaves lying about."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from synthe_core.packing.verify import verify
from synthe_core.storage.checkpoint import Checkpoint, checkpoints
from tests.cli.conftest import RECIPE
from tests.forking import Ended, Forks, forks

ROUNDS = [2, pytest.param(12, marks=pytest.mark.slow)]
SLOW = ("profile",)  # of which two rounds take a minute
REFUSAL = re.compile(r"another process is [a-z ]+ \S+ \(pid \d+\)|is not empty|exists already")
LEFTOVER = re.compile(r"\.synthe-lock$|\.partial$|\.replaced$|\.complete$|^\.synthe")


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    with forks(tmp_path_factory.mktemp("cache")) as running:
        yield running


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, forked: Forks) -> Path:
    """A folder with a recipe, text, three trained runs, a packed one, an exported one and a trial of a benchmark."""
    folder = tmp_path_factory.mktemp("inputs") / "in"
    folder.mkdir()
    (folder / "small.yaml").write_text(RECIPE)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    data = ["--data", "text.txt", "--set", "data.validation=0.2"]
    commands = [
        *(["train", "small.yaml", *data, "--set", f"seed={n}", "--out", name] for n, name in enumerate("abc")),
        ["train", "baselines/transformer", *data, "--out", "llama", "-s", "train.budget=1steps",
         "-s", "model.width=48", "-s", "model.blocks=1", "-s", "train.batch=2", "-s", "data.sequence=32"],
        ["pack", "a", "-o", "a.synapse"],
        ["export", "hf", "llama", "--out", "hf"],
        ["bench", "parity", "--layer", "mlp", "--steps", "2", "--width", "8", "--out", "trials", "--device", "cpu"],
    ]  # fmt: skip
    for command in commands:
        (ended,) = forked.run(folder, command)
        assert ended.code == 0, (command, ended.stderr)
    return folder


def runs_model(out: Path) -> None:
    model = Checkpoint.open(out).model()
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))


def is_whole_run(out: Path) -> None:
    runs_model(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["phase"]) for line in lines]
    assert len(set(steps)) == len(steps) and checkpoints(out), "two trainings have written into one run"


def is_whole_file(out: Path) -> None:
    list(verify(out))
    runs_model(out)


def is_whole_page(out: Path) -> None:
    assert out.read_text().rstrip().endswith("</html>")


def is_whole_report(out: Path) -> None:
    is_whole_page(out / "report.html")


def has_a_trial(out: Path) -> None:
    (trial,) = out.glob("trial-*.json")
    assert 0 <= json.loads(trial.read_text())["accuracy"] <= 1


def is_export(out: Path) -> None:
    assert json.loads((out / "config.json").read_text())["architectures"] == ["Qwen3ForCausalLM"]
    assert (out / "model.safetensors").stat().st_size > 1000 and (out / "tokenizer_config.json").is_file()


def is_unpacked(out: Path) -> None:
    list(verify(out))


def is_adapter(out: Path) -> None:
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 2
    assert (out / "adapter_model.safetensors").stat().st_size > 100


class Verb(NamedTuple):
    """arguments: with OUT for the place; out: its name; once: whether a second result is refused."""

    arguments: list[str]
    out: str
    check: Callable[[Path], None]
    once: bool


DATA = ["--data", "text.txt", "--set", "data.validation=0.2"]
VERBS = {
    "train": Verb(["train", "small.yaml", *DATA, "--out", "OUT"], "run", is_whole_run, True),
    "resume": Verb(["train", "OUT", "--resume", "--set", "train.budget=8steps"], "run", is_whole_run, False),
    "merge ties": Verb(["merge", "ties", "a", "b", "c", "--out", "OUT"], "merged", runs_model, True),
    "extract-lora": Verb(["merge", "extract-lora", "a", "b", "--rank", "2", "--out", "OUT"], "lora", is_adapter, True),
    "pack": Verb(["pack", "a", "--out", "OUT"], "x.synapse", is_whole_file, False),
    "quantise": Verb(["pack", "a", "-q", "int8", "--data", "text.txt", "-o", "OUT"], "q.synapse", is_whole_file, False),
    "sign": Verb(["pack", "sign", "OUT", "--key", "key.pem"], "x.synapse", is_whole_file, False),
    "unpack": Verb(["unpack", "a.synapse", "--out", "OUT"], "unpacked", is_unpacked, True),
    "export": Verb(["export", "hf", "llama", "--out", "OUT"], "exported", is_export, True),
    "import": Verb(["import", "hf", "hf", "--out", "OUT"], "imported", runs_model, True),
    "session": Verb(["generate", "a", "-p", "x", "-n", "2", "--state-out", "OUT"], "s.safetensors", Path.stat, False),
    "confidence": Verb(
        ["eval", "confidence", "a", "--data", "text.txt", "--plot", "OUT"], "c.html", is_whole_page, False
    ),
    "introspect": Verb(["introspect", "a", "--text", "the fox", "--html", "OUT"], "i.html", is_whole_page, False),
    "profile": Verb(["profile-vram", "small.yaml", "--html", "OUT"], "p.html", is_whole_page, False),
    "report": Verb(["bench", "report", "trials", "--out", "OUT"], "report", is_whole_report, False),
    "bench": Verb(
        ["bench", "parity", "--layer", "mlp", "--steps", "2", "--width", "8", "--device", "cpu", "--out", "OUT"],
        "bench", has_a_trial, False,
    ),
}  # fmt: skip


def prepare(name: str, verb: Verb, inputs: Path) -> None:
    """Removes the last result, and puts there what the verb changes."""
    out = inputs / verb.out
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    if name == "resume":
        shutil.copytree(inputs / "a", out)
    if name == "sign":
        shutil.copyfile(inputs / "a.synapse", out)
        (inputs / "key.pem").write_bytes(_key())


def _key() -> bytes:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(bytes(32))
    form = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())


def judge(verb: Verb, ended: list[Ended]) -> None:
    """One has written. The other has too, or says in one line why not."""
    codes = sorted(each.code for each in ended)
    assert codes in ([[0, 2]] if verb.once else [[0, 0], [0, 2]]), [each.stderr for each in ended]
    for each in ended:
        if each.code == 2:
            errors = [line for line in each.stderr.splitlines() if line.startswith("error:")]
            assert len(errors) == 1 and REFUSAL.search(errors[0]) and each.stderr.splitlines()[-1].startswith("hint:")


def leftovers(folder: Path) -> list[str]:
    return [str(path) for path in folder.rglob(".*") if LEFTOVER.search(path.name)]


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n in SLOW)) for n in VERBS])
def test_two_writers_of_one_place(name: str, rounds: int, inputs: Path, forked: Forks) -> None:
    verb = VERBS[name]
    command = [verb.out if word == "OUT" else word for word in verb.arguments]
    for _ in range(rounds):
        prepare(name, verb, inputs)
        ended = forked.run(inputs, command, command)
        judge(verb, ended)
        verb.check(inputs / verb.out)
        assert leftovers(inputs) == []


@pytest.mark.parametrize("rounds", ROUNDS)
def test_two_prepare_the_same_text(rounds: int, inputs: Path, forked: Forks) -> None:
    """Both succeed, and training reads what a single writer makes."""
    for number in range(rounds):
        text = f"text {rounds} {number} the quick brown fox jumps over the lazy dog\n" * 600
        (inputs / "new.txt").write_text(text)
        ended = forked.run(inputs, ["data", "prepare", "new.txt"], ["data", "prepare", "new.txt"])
        assert [each.code for each in ended] == [0, 0], [each.stderr for each in ended]
        (counted,) = forked.run(inputs, ["data", "prepare", "new.txt", "--json"])
        assert json.loads(counted.stdout.splitlines()[-1])["values"]["bytes"] == len(text.encode()), counted.stdout
        assert leftovers(inputs) == []


@pytest.mark.parametrize("rounds", ROUNDS)
@pytest.mark.parametrize("name", ["merge ties", "pack", "quantise", "unpack", "export", "import", "train"])
def test_a_kill_leaves_no_half_result(name: str, rounds: int, inputs: Path, forked: Forks) -> None:
    verb = VERBS[name]
    command = [verb.out if word == "OUT" else word for word in verb.arguments]
    for number in range(rounds):
        prepare(name, verb, inputs)
        forked.run(inputs, command, kill_after=0.02 + 0.6 * number / rounds)
        out = inputs / verb.out
        if name == "train" and checkpoints(out):
            runs_model(out)
        elif out.exists() and name != "train":
            verb.check(out)  # it was done before the kill
        if out.exists():
            prepare(name, verb, inputs)
        (again,) = forked.run(inputs, command)
        assert again.code == 0, again.stderr
        verb.check(out)
        assert leftovers(inputs) == []


DOT = {
    "train": (["train", "../in/small.yaml", "--data", "../in/text.txt", *DATA[2:], "--out", "."], "."),
    "merge ties": (["merge", "ties", "../in/a", "../in/b", "../in/c", "--out", "."], "."),
    "extract-lora": (["merge", "extract-lora", "../in/a", "../in/b", "--rank", "2", "--out", "."], "."),
    "pack": (["pack", "../in/a", "--out", "."], "small.synapse"),
    "unpack": (["unpack", "../in/a.synapse", "--out", "."], "."),
    "export": (["export", "hf", "../in/llama", "--out", "."], "."),
    "import": (["import", "hf", "../in/hf", "--out", "."], "."),
    "report": (["bench", "report", "../in/trials", "--out", "."], "."),
    "bench": ([*VERBS["bench"].arguments[:-1], "."], "."),
}  # fmt: skip


@pytest.mark.parametrize("name", DOT)
def test_the_working_folder_as_out(name: str, inputs: Path, forked: Forks) -> None:
    command, result = DOT[name]
    here = inputs.parent / "here"
    shutil.rmtree(here, ignore_errors=True)
    here.mkdir()
    before = here.stat().st_ino
    (ended,) = forked.run(here, command)
    assert ended.code == 0, ended.stderr
    assert here.stat().st_ino == before and leftovers(here) == []
    VERBS[name].check(here / result)


@pytest.mark.parametrize("name", ["train", "merge ties", "pack", "export", "introspect"])
def test_out_may_be_a_link(name: str, inputs: Path, forked: Forks) -> None:
    verb = VERBS[name]
    for path in (inputs / "link", inputs / "target"):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
    (inputs / "link").symlink_to("target")
    (ended,) = forked.run(inputs, ["link" if word == "OUT" else word for word in verb.arguments])
    assert ended.code == 0, ended.stderr
    assert (inputs / "link").is_symlink() and not (inputs / "target").is_symlink()
    verb.check(inputs / "target")
