"""Decoding beside other programs: what is timed, the peers that are there, and those that are not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from synthe_core.benchmarks.decoding import llama_server, transformers_generate
from synthe_core.benchmarks.decoding.compare import DecodingComparison, compare_decoding
from synthe_core.benchmarks.decoding.llama_server import LlamaServer
from synthe_core.benchmarks.decoding.stream_client import step_seconds
from synthe_core.benchmarks.decoding.transformers_generate import TransformersGenerate
from synthe_core.errors import InputError, WorkError
from synthe_core.events import Measurement, Notice
from tests.benchmarks.decoding import llama_server as standin
from tests.inference.conftest import MEMORY, written


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "llama-server"
    path.write_text(f'#!/bin/sh\nexec {sys.executable} {standin.__file__} "$@"\n')
    path.chmod(0o755)
    return path


def gguf(path: Path, content: bytes = b"GGUF") -> Path:
    path.write_bytes(content)
    return path


def test_a_step_is_of_the_time_in_which_all_streams_run():
    """Two streams of 5 tokens; the second begins 2 s later and gets its tokens a second apart."""
    first, second = [0.0, 1.0, 2.0, 3.0, 4.0], [2.0, 3.0, 4.0, 5.0, 6.0]
    assert step_seconds([first, second], [5, 5]) == pytest.approx(1.0)
    assert step_seconds([first], [5]) == pytest.approx(1.0)
    assert step_seconds([[0.0, 1.0, 2.0]], [6]) == pytest.approx(0.5)  # two tokens in a chunk
    with pytest.raises(ValueError, match="did not run at the same time"):
        step_seconds([first, [9.0, 10.0]], [5, 2])


def test_the_engine_and_the_server_are_timed_and_absent_programs_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama_server.shutil, "which", lambda name: None)
    options = DecodingComparison(written(tmp_path / "m", MEMORY), ("llama.cpp",), (1, 2), turns=1, tokens=16)
    events = list(compare_decoding(options))
    measured = [each for each in events if isinstance(each, Measurement)]
    candidates = ["synthe", "synthe over HTTP"]
    cases = ["decoding 1 text", "prefill of 512 tokens", "decoding 2 texts"]
    assert [(each.case, each.values["candidate"]) for each in measured] == [(c, n) for c in cases for n in candidates]
    assert all(each.values["ratio"] == 1 for each in measured if each.values["candidate"] == "synthe")
    assert all(float(each.values["ms"] or 0) > 0 for each in measured)
    notices = [each for each in events if isinstance(each, Notice)]
    missing = [each.message for each in notices if each.level == "warning"]
    assert missing == [
        "not measured: llama.cpp: no llama-server on the PATH (install llama.cpp, or name it: --llama-server PATH)"
    ]
    assert any("weights float32" in each.message for each in notices)


def test_llama_cpp_is_timed_by_its_server(tmp_path: Path, program: Path) -> None:
    server = LlamaServer(gguf(tmp_path / "m.gguf"), 257, 1, program)
    try:
        assert server.settings["version"] == "1234 (abcdef)"
        for rows in (3, 1):
            server.prepare(rows)
            assert server.step(rows, 16) > 0
        assert server.prefill() > 0
        process: Any = server._process
    finally:
        server.close()
    assert process.poll() is not None, "its process has ended"


def test_a_failed_request_is_an_error(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_server, "CONTEXT", 8)
    monkeypatch.setattr(llama_server, "PREFILL_TOKENS", 4)
    server = LlamaServer(gguf(tmp_path / "m.gguf"), 257, 1, program)
    try:
        server.prepare(1)
        with pytest.raises(WorkError, match=r"llama\.cpp failed a request: HTTP 400: .*too long"):
            server.step(1, 16)
    finally:
        server.close()


def test_a_server_that_does_not_start_says_why(tmp_path: Path, program: Path) -> None:
    server = LlamaServer(gguf(tmp_path / "m.gguf", b"GGUF damaged"), 257, 1, program)
    try:
        with pytest.raises(WorkError, match="did not start: error: the model is damaged"):
            server.prepare(1)
    finally:
        server.close()


def test_peers_that_cannot_run_a_model_say_so(tmp_path: Path, program: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="GGUF"):
        LlamaServer(gguf(tmp_path / "m.bin", b"text"), 257, 1, program)
    with pytest.raises(InputError, match="no llama-server at"):
        LlamaServer(tmp_path, 257, 1, tmp_path / "nothing")
    with pytest.raises(InputError, match="neither"):
        TransformersGenerate(tmp_path, 257, 1)
    monkeypatch.setattr(transformers_generate, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="not installed") as caught:
        TransformersGenerate(tmp_path, 257, 1)
    assert "pip install transformers" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"against": ("lama.cpp",)}, "lama.cpp"), ({"tokens": 3}, "at least 16"), ({"rows": (0,)}, "1 or more")],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        DecodingComparison(tmp_path, **changes).check()


@pytest.mark.slow
def test_transformers_is_timed(tmp_path: Path) -> None:
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path)
    peer = TransformersGenerate(tmp_path, 64, 1)
    try:
        assert peer.step(2, 16) > 0 and peer.prefill() > 0 and peer.settings["weights"] == "float32"
    finally:
        peer.close()
