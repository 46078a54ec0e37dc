"""`synthe chat`: every message is evaluated once, here or on a server, and a pipe gets only the answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.hardware.probe import cache_dir
from tests.adapters.conftest import base  # noqa: F401
from tests.adapters.conftest import saved as adapter
from tests.evaluation.models import saved
from tests.paths import ROOT
from tests.processes import PROGRAM, Terminal, start

Run = Callable[..., Any]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="module")
def talker(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = TEMPLATE
    return saved(tmp_path_factory.mktemp("model") / "talker", tokenizer=tokenizer)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("model") / "writer")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One of its own, for conversations and what was typed; the compiled kernels are those that are there."""
    real, own = cache_dir(), tmp_path / "cache"
    own.mkdir()
    for each in real.glob("*"):
        if each.name not in ("chats", "chat_history", "documents"):
            (own / each.name).symlink_to(each)
    monkeypatch.setenv("SYNTHE_CACHE", str(own))
    return own


def rows(done: Any) -> list[dict[str, Any]]:
    assert done.exit_code == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_a_line_is_a_message_and_only_answers_are_printed(synthe: Run, talker: Path) -> None:
    done = synthe("chat", talker, "-n", 12, "--seed", 1, "-t", 0, stdin="hello\n\nand then?\n")
    assert (done.exit_code, done.stderr) == (0, "")
    texts = [
        row["text"] for row in rows(synthe("chat", talker, "-n", 12, "-t", 0, "--json", stdin="hello\nand then?\n"))
    ]
    assert len(texts) == 2 and done.stdout == "".join(f"{text}\n" for text in texts)


def test_a_turn_evaluates_only_its_new_tokens(synthe: Run, talker: Path) -> None:
    turns = rows(synthe("chat", talker, "-n", 10, "--json", "--seed", 3, stdin="hello there\n" + "more\n" * 5))
    new = [turn["prompt_tokens"] - turn["cached_tokens"] for turn in turns]
    assert new[0] == turns[0]["prompt_tokens"] == len("[user]hello there[assistant]")
    assert turns[5]["prompt_tokens"] > 150 and len(set(new[1:])) <= 2
    assert (
        max(new[1:]) <= len("<|endoftext|>[user]more[assistant]") + 1
    )  # and the answer's newest, which awaits its turn


def test_the_answer_is_that_of_the_whole_conversation_read_at_once(synthe: Run, talker: Path, tmp_path: Path) -> None:
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.inference.offline import generate
    from synthe_core.inference.sampling_params import SamplingParams
    from synthe_core.storage.checkpoint import Checkpoint

    command = ["chat", talker, "-n", 8, "-t", 0, "--json", "--system", "be kind"]
    first, second = rows(synthe(*command, stdin="hello\nand\n"))
    assert first["finish_reason"] == "length"
    opened = Checkpoint.open(talker)
    past = f"[system]be kind[user]hello[assistant]{first['text']}<|endoftext|>[user]and[assistant]"
    if "\ufffd" not in first["text"]:  # else the text is not what was written
        model = LoadedModel.from_checkpoint(opened, "model")
        pieces = generate(model, [past], 8, sampling=SamplingParams(temperature=0))
        assert "".join(piece.text for piece in pieces) == second["text"]


def test_regenerate_and_settings(synthe: Run, talker: Path) -> None:
    shorter, warmer = "/set tokens 3\n/regenerate\n", "/set temperature 1.5\n/set seed 9\n/regenerate\n"
    lines = f"/set temperature 0\nhello\n/regenerate\n{shorter}{warmer}"
    done = synthe("chat", talker, "-n", 9, "--json", stdin=lines)
    first, again, short, other = rows(done)
    assert first["text"] == again["text"] and again["prompt_tokens"] == first["prompt_tokens"]
    assert short["tokens"] == other["tokens"] == 3 and short["text"] != other["text"]
    assert "temperature 1.5" in done.stderr


def test_a_conversation_survives_a_restart(synthe: Run, talker: Path) -> None:
    command = ["chat", talker, "-n", 8, "-t", 0, "--json"]
    whole = rows(synthe(*command, stdin="hello\nand then\nat last\n"))
    first = rows(synthe(*command, stdin="hello\n/save evening\n"))
    then = rows(synthe(*command, stdin="/load evening\nand then\n/fork later\n"))
    last = rows(synthe(*command, "--session", "evening", stdin="at last\n"))
    assert [row["text"] for row in (*first, *then, *last)] == [row["text"] for row in whole]
    assert [row["prompt_tokens"] for row in last] == [whole[2]["prompt_tokens"]]
    # The fork stands where it was left, and is known well enough to be redone.
    redone = rows(synthe(*command, "--session", "later", stdin="/regenerate\nat last\n"))
    assert [row["text"] for row in redone] == [whole[1]["text"], whole[2]["text"]]
    done = synthe("chat", talker, stdin="/sessions\n")
    assert done.stderr.split() == ["evening", "later"]


def test_save_does_not_overwrite_another_conversation(synthe: Run, talker: Path, tmp_path: Path) -> None:
    command = ["chat", talker, "-n", 4, "--sessions", tmp_path]
    again = synthe(*command, stdin="hello\n/save noon\nmore\n/save noon\n")  # its own copy may be renewed
    assert again.exit_code == 0, again.stderr
    done = synthe(*command, stdin="hello\n/save noon\n")
    assert done.exit_code == 2 and "another conversation is named 'noon' already" in done.stderr


def test_an_adapter_is_applied(synthe: Run, tmp_path: Path, base: Path) -> None:  # noqa: F811
    adapted = adapter(tmp_path / "adapted", base, {"rank": 4}, 3).path
    options = ["--tokens", 12, "--json", "-t", 0]
    plain, own, path = (
        rows(synthe("chat", *which, *options, stdin="hello\n"))[0]["text"]
        for which in ([base], [base, "--adapter", adapted], [adapted])
    )
    assert own == path != plain


def test_reset_forgets(synthe: Run, talker: Path) -> None:
    first, second, third = rows(
        synthe("chat", talker, "-n", 6, "-t", 0, "--json", stdin="hello\n/reset\nhello\n/system be brief\nhello\n")
    )
    assert first["text"] == second["text"] and first["prompt_tokens"] == second["prompt_tokens"]
    assert third["prompt_tokens"] == first["prompt_tokens"] + len("[system]be brief")


def test_a_model_without_a_template_continues_the_text(synthe: Run, writer: Path) -> None:
    first, second = rows(synthe("chat", writer, "-n", 6, "-t", 0, "--json", stdin="the river\n runs\n"))
    text = synthe("generate", writer, "-p", "the river", "-n", 6, "-t", 0, "--json")
    assert first["text"] == json.loads(text.stdout)["text"]
    assert second["prompt_tokens"] == len("the river") + 6 + len(" runs")
    done = synthe("chat", writer, "--system", "be kind", stdin="hello\n")
    assert done.exit_code == 2 and "no chat template" in done.stderr


@pytest.mark.parametrize(
    ("lines", "message", "hint"),
    [
        ("/regenrate", "unknown command '/regenrate'", "did you mean '/regenerate'?"),
        ("/set temprature 1", "unknown setting 'temprature'", "did you mean 'temperature'?"),
        ("/set temperature hot", "temperature: ", None),
        ("/set temperature -1", "temperature: ", None),
        ("/set tokens none", "tokens must be a whole number, not none", None),
        ("/save", "/save needs one name", None),
        ("/save evening", "there is nothing to keep yet", None),
        ("/load evening", "no conversation is kept here yet", None),
        ("hello\n/save ../../etc", "invalid session name", None),
        ("/regenerate", "there is no answer to write again", None),
    ],
)
def test_invalid_commands_are_one_line(synthe: Run, talker: Path, lines: str, message: str, hint: str | None) -> None:
    done = synthe("chat", talker, "-n", 2, stdin=lines)
    assert done.exit_code == 2 and "Traceback" not in done.stderr
    assert message in done.stderr and (hint or "") in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model given"),
        (["--url", "http://127.0.0.1:9"], "no server answers at http://127.0.0.1:9"),
        (["--url", "http://"], "http:// is no address of a server"),
        (["--url", "http://127.0.0.1:9", "--device", "cpu"], "do not apply to a server"),
        (["nowhere"], "nowhere"),
    ],
)
def test_invalid_arguments(synthe: Run, arguments: list[str], message: str) -> None:
    done = synthe("chat", *arguments, stdin="hello\n")
    assert done.exit_code in (1, 2) and message in done.stderr and len(done.stderr.splitlines()) <= 2


def test_the_same_conversation_through_a_server(synthe: Run, talker: Path, tmp_path: Path) -> None:
    from synthe_core.inference.async_engine import AsyncEngine
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.serving.api.server import Server
    from synthe_core.serving.api.settings import Settings

    lines = "hello\nand then\n/save evening\n/regenerate\n/load evening\nat last\n"
    options = ["-n", 8, "-t", 0, "--json"]
    here = rows(synthe("chat", talker, *options, stdin=lines))
    key = tmp_path / "key"
    key.write_text("secret\n")
    with Server(AsyncEngine([LoadedModel.load(talker)]), Settings(keys=("secret",))) as server:
        there = rows(synthe("chat", "--url", server.url, "--api-key-file", key, *options, stdin=lines))
        refused = synthe("chat", "--url", server.url, stdin="hello\n")
        assert refused.exit_code == 2 and "SYNTHE_API_KEY" in refused.stderr
        near = synthe("chat", "taker", "--url", server.url, "--api-key-file", key, stdin="hello\n")
        assert "did you mean 'talker'?" in near.stderr
    assert len(here) == len(there) == 4
    same = [(a["text"], b["text"]) for a, b in zip(here, there, strict=True) if "\ufffd" not in a["text"]]
    assert all(a == b for a, b in same)
    assert [row["cached_tokens"] > 0 for row in there] == [False, True, True, True]


@pytest.fixture
def terminal() -> Iterator[Callable[..., Terminal]]:
    """Starts `synthe ARGUMENTS...` on a terminal; ended with the test."""
    opened: list[Terminal] = []

    def open_one(*arguments: object) -> Terminal:
        opened.append(Terminal("-c", PROGRAM, *arguments))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_ctrl_c_stops_the_answer_and_not_the_program(terminal: Callable[..., Terminal], talker: Path) -> None:
    chat = terminal("chat", talker, "-n", 1_000_000, "--seed", 4)
    chat.until("> ")
    chat.write("hello\n")
    chat.until("hello\r\n.")  # the answer has begun
    chat.write("\x03")
    chat.until("tok/s.*stopped")
    chat.write("/set tokens 4\n")
    chat.until("tokens 4")
    chat.write("go on\n")
    assert "cached" in chat.until(r"4 tokens  .*\n")
    chat.write("/hepl\n")
    chat.until("did you mean '/help'")
    chat.until("> ")
    chat.write("\x03")
    assert chat.exit_code() == 0


def test_ctrl_c_leaves_a_line_that_is_half_typed(terminal: Callable[..., Terminal], talker: Path) -> None:
    chat = terminal("chat", talker)
    chat.until("> ")
    chat.write("half a line")
    chat.until("half a line")
    chat.write("\x03")
    assert chat.exit_code() == 0


@pytest.mark.slow  # loads a second Python
def test_a_closed_pipe_ends_it_quietly(talker: Path) -> None:
    program = [sys.executable, "-c", PROGRAM, "chat", str(talker), "-n", "200000"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with start(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdin.write(b"hello\n")
        process.stdin.close()
        process.stdout.read(5)
        process.stdout.close()
        assert process.wait(60) == 141
        assert process.stderr.read() == b""
