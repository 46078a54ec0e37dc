"""The commands `synthe serve` and `synthe up`: their options, and a server from start to shutdown."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from synthe_cli.api_key import keys_in
from synthe_cli.commands import serve_run
from synthe_cli.commands.serve_options import ServeOptions
from synthe_cli.commands.serve_run import model_paths, parse_adapter, read_keys, settings_of
from synthe_cli.options import size_option
from synthe_core.errors import InputError
from synthe_core.packing.adapters import parse_named
from tests.paths import ROOT
from tests.processes import start

Run = Callable[..., Any]


def test_names(tmp_path: Path) -> None:
    (tmp_path / "my run").mkdir()
    (tmp_path / "model.synapse").touch()
    paths = model_paths([str(tmp_path / "my run"), f"{tmp_path}/model.synapse", f"b.1={tmp_path}"])
    assert list(paths) == ["my-run", "model", "b.1"]
    for bad in (
        [f"a={tmp_path}", f"a={tmp_path}"],
        [f"a:b={tmp_path}"],
        [f"={tmp_path}"],
        ["x=/no/such"],
        ["/no/such"],
    ):
        with pytest.raises(InputError):
            model_paths(bad)


@pytest.mark.parametrize("folder", ["a=b", "x+y", "my [run]", "50%", "a b"])
def test_a_path_may_have_any_letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    (tmp_path / folder / "m").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_paths([f"{tmp_path}/{folder}/m"]) == {"m": tmp_path / folder / "m"}
    assert list(model_paths([folder]).values()) == [Path(folder)]
    assert model_paths([f"n={folder}/m"]) == {"n": Path(folder) / "m"}
    assert parse_adapter(f"a={folder}/m", {"m": tmp_path})[2] == Path(folder) / "m"
    assert parse_named(f"{folder}/m") == ("m", Path(folder) / "m")
    assert parse_named(f"code={folder}/m") == ("code", Path(folder) / "m")


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + b"k" * 32 + b"\r\n\r\n# two\r\n" + b"l" * 32,
        (("k" * 32) + "\r\n" + ("l" * 32) + "\r\n").encode("utf-16"),
    ],
)
def test_keys_saved_by_editors_of_windows(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "keys.txt").write_bytes(content)
    assert keys_in(tmp_path / "keys.txt") == ("k" * 32, "l" * 32)


def test_keys_have_roles(tmp_path):
    path = tmp_path / "keys.txt"
    path.write_text(f"# who\n{'k' * 32}\n{'r' * 32}   reviewer\n{'a' * 32}\tadmin\n{'u' * 32} user\n")
    path.chmod(0o600)
    settings = settings_of(ServeOptions(api_key_file=path, host="0.0.0.0"))
    assert (settings.keys, settings.reviewer_keys) == (("k" * 32, "r" * 32, "u" * 32), ("r" * 32,))
    assert (settings.admin_keys, settings.keyless_role) == (("a" * 32,), "user")
    assert settings_of(ServeOptions()).keyless_role == "admin"
    assert settings_of(ServeOptions(host="0.0.0.0", insecure=True)).keyless_role == "user"
    for text, word in (
        (f"{'k' * 32} admn", "did you mean 'admin'?"),
        (f"{'k' * 32} admin user", "more than a key and a role"),
        (f"{'k' * 32} admin\n{'k' * 32}", "another role above"),
    ):
        path.write_text(text)
        with pytest.raises(InputError) as error:
            settings_of(ServeOptions(api_key_file=path))
        assert word in f"{error.value.message} {error.value.hint}"


def test_the_newest_run_is_served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="no runs"):
        model_paths([])
    for age, name in enumerate(("new", "old")):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        os.utime(tmp_path / "runs" / name, (1000 - age, 1000 - age))
    assert list(model_paths([])) == ["new"]


def test_adapters_to_load(tmp_path: Path) -> None:
    one, two = {"m": tmp_path}, {"m": tmp_path, "n": tmp_path}
    assert parse_adapter(f"a={tmp_path}", one) == ("m", "a", tmp_path)
    assert parse_adapter(f"n:a={tmp_path}", two) == ("n", "a", tmp_path)
    for text, known in ((f"a={tmp_path}", two), ("m:a", one), (f"o:a={tmp_path}", two), ("m:a=/no/such", one)):
        with pytest.raises(InputError):
            parse_adapter(text, known)


def test_other_hosts_need_a_key(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no API key is set"):
        settings_of(ServeOptions(host="0.0.0.0"))
    assert settings_of(ServeOptions(host="0.0.0.0", insecure=True)).hosts is None
    keys = tmp_path / "keys"
    keys.write_text(f"# ours\n{'a' * 32}\n\n{'b' * 32}\n{'a' * 32}\n")
    keys.chmod(0o600)
    assert settings_of(ServeOptions(host="0.0.0.0", api_key_file=keys)).keys == ("a" * 32, "b" * 32)
    admins = settings_of(ServeOptions(host="0.0.0.0", admin_key_file=keys))
    assert (admins.keys, admins.admin_keys) == ((), ("a" * 32, "b" * 32))
    with pytest.raises(InputError, match=r"--admin-key-file .*none"):
        settings_of(ServeOptions(admin_key_file=tmp_path / "none"))
    local = settings_of(ServeOptions(allow_host=["My.Example"]))
    assert local.hosts is not None and local.hosts >= {"localhost", "127.0.0.1", "::1", "my.example"}


@pytest.mark.parametrize("content", [b"", b"# none\n", b"abc12\n", b"\xff\xfe"])
def test_invalid_keys(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "keys"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_keys(path)
    assert "abc12" not in f"{caught.value} {caught.value.hint}".replace(str(path), "")
    with pytest.raises(InputError):
        read_keys(tmp_path / "none")


def test_a_key_file_readable_by_others_gives_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "keys"
    path.write_text("a" * 32)
    path.chmod(0o644)
    read_keys(path)
    assert "chmod 600" in capsys.readouterr().err


def test_sizes() -> None:
    sizes = [size_option(text, "-x") for text in ("0", "10", "1k", "2MiB", "1.5GB", "1.5GiB")]
    assert sizes == [0, 10, 1000, 2 << 20, 15 * 10**8, 3 << 29]
    for bad in ("", "-1", "5x", "GB"):
        with pytest.raises(InputError):
            size_option(bad, "-x")


@pytest.mark.parametrize(
    "options",
    [("--cors-origin", "a.example"), ("--adapters", "/no/such"), ("--cache", "much"), ("--host", "no.such.invalid")],
)
def test_invalid_arguments_are_one_line(synthe: Run, checkpoint: Path, options: tuple[str, str]) -> None:
    done = synthe("serve", checkpoint, "--port", 0, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_port_in_use(synthe: Run, checkpoint: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = synthe("serve", checkpoint, "--port", port)
    assert done.exit_code == 2
    assert done.stderr.splitlines()[-2:] == [
        f"error: port {port} is in use",
        "hint: is another server running? --port 0 takes a free one",
    ]


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], dict[str, Any]]]:
    """The command in a process of its own, and what it says when it is ready."""
    command = [sys.executable, "-c", "from synthe_cli.app import main; main()", "serve", *map(str, arguments)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = start(
        [*command, "--port", "0", "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=surroundings,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield process, json.loads(line)
    finally:
        process.kill()
        process.wait()


def test_a_server_from_start_to_end(checkpoint: Path, tmp_path: Path) -> None:
    """It prints its address, answers, lets a stream finish within --grace, saves conversations and exits with 0."""
    sessions = tmp_path / "chats"
    with serving(f"small={checkpoint}", "--sessions", sessions, "--grace", "0.5") as (process, ready):
        assert ready["models"][0]["name"] == "small"
        assert ready["models"][0]["parameters"] > 0
        body = {"model": "small", "prompt": "x", "max_tokens": 4000, "stream": True, "session": "talk"}
        body["logit_bias"] = {"256": -100}  # no end of its own
        with httpx.stream("POST", f"{ready['url']}/v1/completions", json=body, timeout=60) as stream:
            lines = stream.iter_lines()
            assert next(lines).startswith("data: {")
            begun = time.monotonic()
            process.send_signal(signal.SIGTERM)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
        _, result = process.communicate(timeout=30)
        assert process.returncode == 0, result
        assert time.monotonic() - begun < 20
        assert [path.stem for path in sessions.glob("*")] == ["talk"]
    lines_said = result.splitlines()
    assert any(line.startswith("small  ") and "parameters" in line and "state" in line for line in lines_said)
    assert any(line.startswith(f"ready at {ready['url']}") for line in lines_said)
    assert not any("prompt:" in line for line in lines_said)


@pytest.mark.slow
def test_conversations_survive_a_killed_server(checkpoint: Path, tmp_path: Path) -> None:
    sessions = tmp_path / "chats"
    with serving(f"small={checkpoint}", "--sessions", sessions) as (process, ready):
        body = {"model": "small", "prompt": "x", "max_tokens": 4, "session": "talk"}
        assert httpx.post(f"{ready['url']}/v1/completions", json=body, timeout=60).status_code == 200
        process.kill()
    with serving(f"small={checkpoint}", "--sessions", sessions) as (process, ready):
        sessions_listed = httpx.get(f"{ready['url']}/api/sessions").json()["data"]
        assert [(each["id"], each["saved"]) for each in sessions_listed] == [("talk", True)]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)
        assert process.returncode == 130


def test_up_opens_the_dashboard(synthe: Run, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def open_browser(url: str) -> bool:
        opened.append(url)
        threading.Timer(0.1, lambda: os.kill(os.getpid(), signal.SIGTERM)).start()
        return True

    monkeypatch.setattr(serve_run.webbrowser, "open", open_browser)
    monkeypatch.setenv("DISPLAY", ":0")
    done = synthe("up", checkpoint, "--port", 0)
    assert done.exit_code == 0, done.stderr
    assert opened and opened[0].startswith("http://127.0.0.1:")
    assert f"ready at {opened[0]}" in done.stderr
