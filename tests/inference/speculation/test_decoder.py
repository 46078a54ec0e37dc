"""Texts with drafts are the texts without, whatever a request asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core import state as states
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Grammar
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.speculation import decoder
from synthe_core.inference.speculation.proposer import DraftRequest, Speculation
from synthe_core.ops.fused_decode import unavailable
from tests.inference.conftest import written
from tests.inference.speculation.conftest import PROMPTS, clock, request_of, run, speculating, tokens

WITHOUT_C = pytest.mark.skipif(unavailable("cpu") is not None, reason=str(unavailable("cpu")))
REQUESTS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"sampling": SamplingParams(temperature=0.9), "seed": 3},
    "filters": {"sampling": SamplingParams(temperature=1.2, top_k=30, top_p=0.8, min_p=0.01), "seed": 4},
    "penalties": {
        "sampling": SamplingParams(temperature=0.7, repetition_penalty=1.3, presence_penalty=0.4, frequency_penalty=0.3)
    },
    "bias": {"sampling": SamplingParams(temperature=0, logit_bias={65: 3.0, 66: -100.0})},
    "regex": {"grammar": Grammar("regex", "[a-z]{5}( [a-z]{1,9})+"), "sampling": SamplingParams(temperature=1)},
    "logprobs": {"logprobs": 3},
    "no logprobs": {"return_logprob": False},
    "an end": {"stop_token_ids": (97, 101, 104), "sampling": SamplingParams(temperature=1), "min_tokens": 3},
}


def texts_of(model: LoadedModel, requests: Any) -> dict[tuple[int, ...], list[int]]:
    """What follows each prompt, each alone and without drafts."""
    model.speculation = None
    return {each.prompt_token_ids: tokens(run(model, [each])[0]) for each in requests}


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_same_text(model: LoadedModel, kind: str) -> None:
    requests = [request_of(prompt, **REQUESTS[kind]) for prompt in PROMPTS]
    expected = texts_of(model, requests)
    speculating(model, expected)
    for together in (requests[:1], requests):
        outputs = run(model, together)
        for request, each in zip(together, outputs, strict=True):
            assert tokens(each) == expected[request.prompt_token_ids]
        ends = [each[-1] for each in outputs]
        assert all(isinstance(end, Finished) and end.num_drafted_tokens > 0 for end in ends)
    assert any(end.num_accepted_tokens > 0 for end in ends)  # type: ignore[union-attr]


@WITHOUT_C
def test_logprobs_and_confidence_are_the_same_to_the_bit(fused: LoadedModel) -> None:
    requests = [request_of(prompt, logprobs=2) for prompt in PROMPTS]
    expected = [run(fused, [each])[0] for each in requests]
    speculating(fused, {r.prompt_token_ids: tokens(e) for r, e in zip(requests, expected, strict=True)})
    assert fused.has_exact_passes and fused.batch_invariant
    for ours, theirs in zip(run(fused, requests), expected, strict=True):
        assert [e for e in ours if isinstance(e, TokenOutput)] == [e for e in theirs if isinstance(e, TokenOutput)]


def test_fewer_passes_and_the_counts(model: LoadedModel) -> None:
    requests = [request_of(PROMPTS[0], 41)]
    expected = texts_of(model, requests)
    proposer = speculating(model, expected, wrong=0.0)
    engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    finished = run(model, requests, engine)[0][-1]
    assert isinstance(finished, Finished)
    # The prompt gives one token; two passes have 16 drafted tokens and one more, and the last has five and one.
    assert (finished.num_drafted_tokens, finished.num_accepted_tokens) == (37, 37)
    figures = engine.status()
    assert (figures["drafted_tokens"], figures["accepted_tokens"], figures["written_tokens"]) == (37, 37, 41)
    assert figures["speculation"] == {"model": "known"}
    assert len(proposer.forgotten) == 1


@pytest.mark.parametrize("length", [1, 2, 7, 18])
def test_the_state_at_the_end_is_that_without_drafts(model: LoadedModel, length: int) -> None:
    """Whether the text ends within a draft or behind one."""
    requests = [request_of(PROMPTS[0], length)]
    expected = texts_of(model, requests)
    ends = []
    for speculate in (False, True):
        model.speculation = None
        if speculate:
            speculating(model, {key: [*text, *text, *text] for key, text in expected.items()})
        engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
        sequence = engine.add_request(requests[0], lambda output: False, keep_state=True)
        while engine.has_unfinished:
            engine.step()
        ends.append(sequence.state)
    for (name, mine), (_, theirs) in zip(states.named_leaves(ends[1]), states.named_leaves(ends[0]), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4, msg=name)


def test_a_session_and_a_cached_answer_go_on(model: LoadedModel, tmp_path: Path) -> None:
    first, second = request_of(PROMPTS[0], 21, session_id="s"), request_of(b" and then", 20, session_id="s")
    texts = []
    for speculate in (False, True):
        engine = Engine([model], max_state_bytes=1 << 30, sessions=tmp_path / str(speculate))
        model.speculation = None
        if speculate:
            speculating(model, dict(texts[0]), wrong=0.3)
        made = {first.prompt_token_ids: tokens(run(model, [first], engine)[0])}
        last = made[first.prompt_token_ids][-1]
        made[last, *second.prompt_token_ids] = tokens(run(model, [second], engine)[0])
        whole = request_of((*PROMPTS[1], *range(60, 90)), 20)
        made[whole.prompt_token_ids] = tokens(run(model, [whole], engine)[0])
        turn = request_of((*whole.prompt_token_ids, *made[whole.prompt_token_ids], 33), 20)
        outputs = run(model, [turn], engine)[0]
        made[turn.prompt_token_ids] = tokens(outputs)
        assert outputs[-1].num_cached_tokens > 32  # type: ignore[union-attr]
        texts.append(made)
    assert texts[0] == texts[1]


def test_sequences_come_and_go_and_drafts_end_where_they_do_not_pay(model: LoadedModel) -> None:
    """By the clock every pass takes as long as its tokens: in a batch drafts bring nothing."""
    requests = [request_of(prompt, 30 + 40 * row) for row, prompt in enumerate(PROMPTS)]
    expected = texts_of(model, requests)
    proposer = speculating(model, expected, wrong=0.5)

    def tick() -> float:
        return float(engine.metrics.computed_tokens)

    engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    model.speculation = Speculation(proposer, clock=tick)
    outputs = run(model, requests, engine)
    for request, each in zip(requests, outputs, strict=True):
        assert tokens(each) == expected[request.prompt_token_ids]
    drafted = sum(each[-1].num_drafted_tokens for each in outputs)  # type: ignore[union-attr]
    assert 0 < drafted < 40


@WITHOUT_C
def test_states_after_every_token_have_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Drafts of recurrent models are no longer than there is room for, to none; the text is the same."""
    block = [{"type": "delta", "heads": 2}, {"type": "mlp", "hidden": 32}]
    recurrent = LoadedModel.load(written(tmp_path / "m", block), "model")
    requests = [request_of(prompt) for prompt in PROMPTS[:2]]
    expected = texts_of(recurrent, requests)
    size = recurrent.fused_decoder().row_state_bytes
    assert size == recurrent.model.state_bytes(1) - states.nbytes(recurrent.model.init_state(1).position)
    for room, drafted in ((3 * size, 2), (size, 0)):
        monkeypatch.setattr(decoder, "DRAFT_STATES", room)
        lengths: list[int] = []
        speculating(recurrent, expected)
        speculation = recurrent.speculation
        assert speculation is not None
        propose = speculation.proposer.propose

        def noted(wanted: Any, propose: Any = propose, lengths: list[int] = lengths) -> Any:
            lengths.extend(each.most for each in wanted)
            return propose(wanted)

        monkeypatch.setattr(speculation.proposer, "propose", noted)
        assert tokens(run(recurrent, requests[:1])[0]) == expected[requests[0].prompt_token_ids]
        assert max(lengths, default=0) == drafted


def test_a_failing_proposer_costs_no_text(model: LoadedModel) -> None:
    requests = [request_of(PROMPTS[0])]
    expected = texts_of(model, requests)
    proposer = speculating(model, {})  # KeyError
    engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    assert tokens(run(model, requests, engine)[0]) == expected[requests[0].prompt_token_ids]
    assert engine.status()["speculation"]["model"].startswith("off: ")
    assert proposer.texts == {}


def test_a_pass_that_fails_costs_no_text_and_is_reported(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [request_of(prompt) for prompt in PROMPTS]
    expected = texts_of(model, requests)
    speculating(model, expected)
    calls = []

    def fail(*args: Any) -> Any:
        calls.append(1)
        raise RuntimeError("no memory")

    monkeypatch.setattr("synthe_core.inference.speculation.decoder.run_pass", fail)
    engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    for request, each in zip(requests, run(model, requests, engine), strict=True):
        assert tokens(each) == expected[request.prompt_token_ids]
    assert calls == [1] and "no memory" in engine.status()["speculation"]["model"]


def test_stopped_and_aborted_within_a_draft(model: LoadedModel) -> None:
    request = request_of(PROMPTS[0], session_id="s")
    expected = texts_of(model, [request_of(PROMPTS[0])])
    speculating(model, expected, wrong=0.0)
    engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    received: list[Any] = []

    def receive(output: Any) -> bool:
        received.append(output)
        return sum(isinstance(each, TokenOutput) for each in received) == 7

    engine.add_request(request, receive)
    other = engine.add_request(request_of(PROMPTS[0]), lambda output: False)
    for _ in range(2):
        engine.step()
    engine.abort(other)
    while engine.has_unfinished:
        engine.step()
    assert tokens(received) == expected[request.prompt_token_ids][:7]
    assert received[-1].reason == "stop" and other.finish_reason == "cancelled"
    assert len(other.output_token_ids) > 4


class _Uniform:
    """Drafts tokens at random."""

    name, is_free = "random", True

    def matched(self, request: DraftRequest) -> None:
        return None

    def propose(self, requests: list[DraftRequest]) -> list[list[int]]:
        return [torch.randint(8, (min(3, each.most),)).tolist() for each in requests]

    def forget(self, key: Any) -> None:
        pass


def test_sampling_keeps_the_distribution() -> None:
    """Chi-square over 20,000 draws of the third token of eight, whatever is drafted: at most one run in 10,000 of a
    right sampler gives more."""
    from synthe_core.data.tokenizers import ByteTokenizer
    from tests.inference.test_fused_decoder import model_of

    language_model = model_of({"heads": 4})
    language_model.vocab = 50
    loaded = LoadedModel("model", language_model, ByteTokenizer())
    bias = {token: -100.0 for token in range(8, 50)}
    sampling = SamplingParams(temperature=1.5, logit_bias=bias)
    counts = torch.zeros(8, 8, dtype=torch.float64)
    loaded.speculation = Speculation(_Uniform(), clock=clock(), always=True)
    rows, rounds = 500, 40
    torch.manual_seed(0)
    for number in range(rounds):
        requests = [
            request_of((1, 2, 3), 3, sampling=sampling, seed=number * rows + row, return_logprob=False)
            for row in range(rows)
        ]
        for start in range(0, rows, 25):
            for each in run(loaded, requests[start : start + 25]):
                _, second, third = tokens(each)
                counts[second, third] += 1
    assert counts.sum() == 20_000
    with torch.inference_mode():
        expected = torch.zeros(8, 8, dtype=torch.float64)
        logits = language_model(torch.tensor([[1, 2, 3]]))[0][0, -1, :8]
        for first, p in enumerate((logits / 1.5).double().softmax(-1)):
            logits = language_model(torch.tensor([[1, 2, 3, first]]))[0][0, -1, :8]
            for second, q in enumerate((logits / 1.5).double().softmax(-1)):
                logits = language_model(torch.tensor([[1, 2, 3, first, second]]))[0][0, -1, :8]
                expected[second] += p * q * (logits / 1.5).double().softmax(-1)
        expected *= 20_000
    usual = expected >= 5
    statistic = float(((counts - expected)[usual] ** 2 / expected[usual]).sum())
    assert int(usual.sum()) > 20
    degrees = torch.tensor((int(usual.sum()) - 1) / 2, dtype=torch.float64)
    assert torch.special.gammaincc(degrees, torch.tensor(statistic / 2, dtype=torch.float64)) > 1e-4
