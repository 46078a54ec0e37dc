"""An error in one sequence ends that sequence, and the others get what they would have got, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.torch import save_file

from synthe_core.data.decoder import Decoder
from synthe_core.errors import InputError
from synthe_core.inference import engine as engine_module
from synthe_core.inference import heads, sampler
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.grammar_check import GrammarChecker
from synthe_core.inference.outputs import TokenOutput
from synthe_core.inference.sampling_params import SamplingParams
from tests.inference.conftest import GREEDY
from tests.inference.test_adapters import with_adapters

WARM = SamplingParams(temperature=0.9, top_p=0.95)
BAD = 66  # a token that only the bad request has


@pytest.fixture
def neighbours(ask: Any) -> list[Any]:
    """Three requests that run all the time: greedy, drawn, and with penalties and logprobs."""
    penalised = SamplingParams(temperature=0.8, repetition_penalty=1.3, presence_penalty=0.2)
    return [
        ask(b"the first", 60),
        ask(b"another one", 60, sampling=WARM, seed=5),
        ask(b"and a third", 60, sampling=penalised, seed=6, logprobs=2),
    ]


def run(memory: Any, neighbours: list[Any], bad: Any = None, late: bool = True) -> tuple[list[Any], Any]:
    """The outputs of the neighbours, and how the bad request ended."""
    with AsyncEngine([memory], max_state_bytes=1 << 28, cache_bytes=0) as engine:
        handles = [engine.submit(request) for request in neighbours]
        if late:
            for handle in handles:
                next(iter(handle))
        end = None if bad is None else list(engine.submit(bad))[-1]
        outputs = [[output for output in handle if isinstance(output, TokenOutput)] for handle in handles]
        assert engine.status()["live"] == engine.status()["state_bytes"] == 0
    return outputs, end


def check(memory: Any, neighbours: list[Any], bad: Any, message: str, monkeypatch: Any = None) -> None:
    if monkeypatch is not None:
        monkeypatch.undo()
    expected, _ = run(memory, neighbours)
    if monkeypatch is not None:
        monkeypatch.redo()
    outputs, end = run(memory, neighbours, bad)
    assert (end.reason, message in end.message) == ("error", True), end
    assert outputs == expected


class Patches:
    """Replacements that can be undone and made again."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch, self.made = monkeypatch, list[tuple[Any, str, Any]]()

    def set(self, owner: Any, name: str, value: Any) -> None:
        self.made.append((owner, name, value))

    def undo(self) -> None:
        self.monkeypatch.undo()

    def redo(self) -> None:
        for owner, name, value in self.made:
            self.monkeypatch.setattr(owner, name, value)


@pytest.fixture
def patches(monkeypatch: pytest.MonkeyPatch) -> Patches:
    return Patches(monkeypatch)


@pytest.mark.parametrize("bias", [1e39, float("inf"), float("nan")])
def test_a_bias_that_is_no_float32_is_refused(engine: Any, ask: Any, bias: float) -> None:
    """By the parameters themselves, or when the request is submitted."""
    with pytest.raises((InputError, ValidationError), match="logit_bias"):
        engine.submit(ask(sampling=SamplingParams(logit_bias={65: bias})))


def test_probabilities_that_are_not_finite(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    """What a bias of 1e39 led to: it overflows, and nothing can be drawn."""
    patches.set(engine_module, "check_request", lambda *_: None)
    bad = ask(b"bad", 5, sampling=SamplingParams(logit_bias={65: 1e39}))
    check(memory, neighbours, bad, "not finite", patches)


REQUIRED = {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"], "additionalProperties": False}


@pytest.mark.parametrize("schema", [{"$ref": "#"}, REQUIRED], ids=["itself", "required"])
def test_a_schema_without_an_end_is_refused_at_once(memory: Any, neighbours: list[Any], ask: Any, schema: Any) -> None:
    pytest.importorskip("llguidance")
    expected, _ = run(memory, neighbours)
    with AsyncEngine([memory], max_state_bytes=1 << 28, cache_bytes=0) as engine:
        handles = [engine.submit(request) for request in neighbours]
        with pytest.raises(InputError, match="JSON schema allows no JSON of finite length"):
            engine.submit(ask(b"bad", 5, json_schema=schema))
        outputs = [[output for output in handle if isinstance(output, TokenOutput)] for handle in handles]
    assert outputs == expected


def test_a_grammar_that_becomes_too_complex(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    """What is beyond the limits at some token of a text ends that text, and says why."""
    pytest.importorskip("llguidance")
    patches.set(GrammarChecker, "error_of", lambda *_: None)
    patches.redo()
    bad = ask(b"bad", 5, json_schema={"type": "string", "pattern": "^(a{1000}){1000}$"})
    expected, _ = run(memory, neighbours)
    outputs, end = run(memory, neighbours, bad)
    assert end.reason == "refused" and "JSON schema cannot be followed further" in end.message, end
    assert outputs == expected


def test_an_adapter_that_computes_nan(memory: Any, neighbours: list[Any], ask: Any) -> None:
    """Its row is in one batch with the others."""
    nan = with_adapters(memory)
    for name, low_rank in nan.adapters["a"].maps.items():
        nan.adapters["a"].maps[name] = replace(low_rank, lora_A=torch.full_like(low_rank.lora_A, torch.nan))
    expected, _ = run(nan, neighbours)
    outputs, end = run(nan, neighbours, ask(b"bad", 5, model="memory:a"))
    assert (end.reason, "not finite" in end.message) == ("error", True), end
    assert outputs == expected


DAMAGES = {
    "NaN": lambda tensors: {name: t.fill_(torch.nan) if t.is_floating_point() else t for name, t in tensors.items()},
    "infinite": lambda tensors: {n: t.fill_(torch.inf) if t.is_floating_point() else t for n, t in tensors.items()},
    "rows": lambda tensors: {name: torch.cat([t, t, t]) for name, t in tensors.items()},
    "no rows": lambda tensors: {name: t[:0] for name, t in tensors.items()},
    "float16": lambda tensors: {name: t.half() if t.is_floating_point() else t for name, t in tensors.items()},
    "position": lambda tensors: tensors | {"state.position": torch.tensor([-5])},
    "foreign": lambda tensors: tensors | {"state.blocks.9.0": torch.zeros(1, 4)},
    "shape": lambda tensors: {n: t[..., :-1].contiguous() if t.is_floating_point() else t for n, t in tensors.items()},
    "missing": lambda tensors: {n: t for n, t in tensors.items() if n == "pending" or "0.1" not in n},
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_damaged_session_is_refused(memory: Any, neighbours: list[Any], ask: Any, tmp_path: Any, damage: str) -> None:
    """It is opened while others generate."""
    with AsyncEngine([memory], max_state_bytes=1 << 28, cache_bytes=0, sessions=tmp_path) as engine:
        list(engine.submit(ask(b"a talk", 3, session_id="talk")))
    path = tmp_path / "talk.safetensors"
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(DAMAGES[damage](tensors), path, metadata)
    expected, _ = run(memory, neighbours)
    with AsyncEngine([memory], max_state_bytes=1 << 28, cache_bytes=0, sessions=tmp_path) as engine:
        handles = [engine.submit(request) for request in neighbours]
        for handle in handles:
            next(iter(handle))
        end = list(engine.submit(ask(b"more", 3, session_id="talk")))[-1]
        outputs = [[output for output in handle if isinstance(output, TokenOutput)] for handle in handles]
    assert end.reason == "refused" and "talk" in end.message and "\n" not in end.message, end
    assert outputs == expected


def test_a_constraint_that_refuses_its_token(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    pytest.importorskip("llguidance")
    from synthe_core.inference.constraints import JsonSchemaConstraint

    def accept(self: Any, token_id: int) -> None:
        raise ValueError("not this one")

    patches.set(JsonSchemaConstraint, "accept", accept)
    check(memory, neighbours, ask(b"bad", 5, json_schema={}), "not this one", patches)


def test_penalties_that_fail(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    apply = sampler._apply_penalties

    def failing(logits: Any, rows: Any) -> Any:
        if any(row.params.top_k == 3 for row in rows):
            raise ValueError("no penalty")
        return apply(logits, rows)

    patches.set(sampler, "_apply_penalties", failing)
    check(memory, neighbours, ask(b"bad", 5, sampling=SamplingParams(top_k=3)), "no penalty", patches)


def test_logprobs_that_fail(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    token_logprobs = heads.token_logprobs

    class Top(int):
        def __bool__(self) -> bool:
            raise ValueError("no logprobs")

    bad = ask(b"bad", 5, logprobs=1)
    patches.set(engine_module, "check_request", lambda *_: None)

    def spying(logits: Any, tokens: Any, top: Any) -> Any:
        return token_logprobs(logits, tokens, [Top(9) if count == 1 else count for count in top])

    patches.set(heads, "token_logprobs", spying)
    check(memory, neighbours, bad, "no logprobs", patches)


def test_text_that_fails(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    push = Decoder.push

    def failing(self: Any, ids: Any) -> str:
        if ids == 256:
            raise ValueError("no text")
        return push(self, ids)

    patches.set(Decoder, "push", failing)
    neighbours = [
        ask(r.prompt_token_ids, 60, sampling=GREEDY.model_copy(update={"logit_bias": {256: -100.0}}))
        for r in neighbours
    ]
    bad = ask(b"bad", 5, sampling=SamplingParams(temperature=0, logit_bias={256: 1000.0}))
    check(memory, neighbours, bad, "no text", patches)


@pytest.mark.parametrize("where", ["prefill", "decode"])
def test_a_pass_that_fails(memory: Any, neighbours: list[Any], ask: Any, patches: Patches, where: str) -> None:
    forward = memory.forward

    def failing(tokens: Any, state: Any, lengths: Any = None) -> Any:
        if bool((tokens == BAD).any()) and (where == "prefill") == (lengths is not None):
            raise RuntimeError("no such kernel")
        return forward(tokens, state, lengths)

    patches.set(memory, "forward", failing)
    plain = GREEDY.model_copy(update={"logit_bias": {BAD: -100.0}})
    neighbours = [ask(request.prompt_token_ids, 60, sampling=plain) for request in neighbours]
    prompt = bytes([BAD, 9]) if where == "prefill" else b"bad"
    bad = ask(prompt, 5, sampling=SamplingParams(temperature=0, logit_bias={BAD: 1000.0}))
    check(memory, neighbours, bad, "no such kernel", patches)


def test_prompts_read_in_one_pass_fail_apart(memory: Any, ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of prompts of one length, which go into one pass, only the one at fault ends."""
    prompts = [b"abcdefgh", b"ijklmnop", bytes([BAD] * 8), b"qrstuvwx"]
    requests = [ask(prompt, 9, sampling=GREEDY.model_copy(update={"logit_bias": {BAD: -100.0}})) for prompt in prompts]
    with AsyncEngine([memory], max_state_bytes=1 << 28, cache_bytes=0) as engine:
        expected = [list(engine.submit(request))[1:-1] for request in requests]
        forward = memory.forward

        def failing(tokens: Any, state: Any, lengths: Any = None) -> Any:
            if bool((tokens == BAD).any()):
                raise RuntimeError("no such kernel")
            return forward(tokens, state, lengths)

        monkeypatch.setattr(memory, "forward", failing)
        gate = engine.call(lambda: torch.zeros(1))
        handles = [engine.submit(request) for request in requests]
        gate.result()
        outputs = [list(handle) for handle in handles]
    assert [each[-1].reason for each in outputs] == ["length", "length", "error", "length"]
    assert [each[1:-1] for index, each in enumerate(outputs) if index != 2] == expected[:2] + expected[3:]


def test_a_session_that_cannot_be_saved(memory: Any, neighbours: list[Any], ask: Any, patches: Patches) -> None:
    from synthe_core.inference.session_store import SessionStore

    def failing(*_: Any) -> None:
        raise OSError("the disk is gone")

    patches.set(SessionStore, "save", failing)
    check(memory, neighbours, ask(b"bad", 5, session_id="talk"), "the disk is gone", patches)
