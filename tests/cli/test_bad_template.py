"""A chat template that fails is one line in the terminal too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data import chat_template
from synthe_core.data.tokenizers import ByteTokenizer
from tests.evaluation.models import saved

Run = Callable[..., Any]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ 1/0 }}", "the chat template fails: ZeroDivisionError"),
        ("{{ 10 ** (10 ** 8) }}", "the chat template fails: it takes more than 0.4 s"),
        ("{{ raise_exception('no\nsystem') }}", "the chat template refuses these messages: no system"),
    ],
)
def test_chat(synthe: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.setattr(chat_template, "WORKERS", chat_template.Workers(cpu_seconds=0.4))
    tokenizer = ByteTokenizer()
    tokenizer.chat_template = source
    path = saved(tmp_path / "model", tokenizer=tokenizer)
    done = synthe("chat", path, "--sessions", tmp_path / "chats", stdin="hello\n")
    chat_template.WORKERS.close()
    assert done.exit_code == 2 and message in done.stderr
    assert "Traceback" not in done.stderr and "bug" not in done.stderr
