"""Several sequences generate one text, drawn from the mixture of their distributions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from tests.inference.conftest import output_ids, text

ONE, OTHER = b"Once upon a time", b"The quick brown fox jumps over"
MODELS = ("memory", "window", "whole")


def logprobs(engine: AsyncEngine, request: Request, tokens: list[int]) -> list[torch.Tensor]:
    """The log-probabilities [V] that follow the prompt and each of `tokens` but the last, of a model's plain passes."""
    served = engine.models[request.model]
    with torch.no_grad(), served.activate():
        logits, state = served.model.next_logits(torch.tensor([list(request.prompt_token_ids)]))
        rows = [logits[0].log_softmax(-1)]
        for token in tokens[:-1]:
            logits, state = served.model.next_logits(torch.tensor([[token]]), state)
            rows.append(logits[0].log_softmax(-1))
    return rows


@pytest.mark.parametrize("model", MODELS)
def test_a_token_has_the_mixture_s_probability(engine, ask, model):
    requests = [ask(prompt, model=model, logprobs=3) for prompt in (ONE, OTHER)]
    outputs = list(engine.submit_mixture(requests, [3, 1]))
    tokens = output_ids(outputs)
    assert len(tokens) == 12
    alone = [logprobs(engine, request, tokens) for request in requests]
    for place, output in enumerate(each for each in outputs if isinstance(each, TokenOutput)):
        mixture = (0.75 * alone[0][place].exp() + 0.25 * alone[1][place].exp()).log()
        assert output.logprob.logprob == pytest.approx(float(mixture[output.token_id]), abs=2e-3)
        assert float(mixture.max() - mixture[output.token_id]) < 2e-3  # greedy
        assert output.top_logprobs[0].token_id == output.token_id
        assert 0 <= output.confidence <= 1


@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0), SamplingParams(temperature=0.8, top_k=40)])
def test_a_member_of_all_the_weight_says_what_it_says_alone(engine, ask, sampling):
    one, other = (ask(prompt, sampling=sampling, seed=5) for prompt in (ONE, OTHER))
    alone = list(engine.submit(one))
    for requests, weights in (([one, other], [1, 0]), ([one, one], [1, 2]), ([one], [7])):
        both = list(engine.submit_mixture(requests, weights))
        assert output_ids(both) == output_ids(alone) and text(both) == text(alone)
        assert both[-1].reason == alone[-1].reason == "length"
    mixed = list(engine.submit_mixture([one, other], [1, 1]))
    assert output_ids(mixed) != output_ids(alone)


def test_company_changes_nothing(engine, ask):
    requests = [ask(prompt, sampling=SamplingParams(temperature=0.9), seed=2) for prompt in (ONE, OTHER)]
    alone = output_ids(engine.submit_mixture(requests, [1, 1]))
    handles = [engine.submit(ask(seed=seed, sampling=SamplingParams(temperature=1))) for seed in range(5)]
    groups = [engine.submit_mixture(requests, [1, 1]) for _ in range(3)]
    assert [output_ids(each) for each in groups] == [alone] * 3
    assert all(list(each)[-1].reason == "length" for each in handles)


def test_groups_wait_for_room_and_never_for_each_other(memory, ask):
    with AsyncEngine([memory], max_num_seqs=3, max_state_bytes=1 << 28, cache_bytes=0) as engine:
        requests = [ask(prompt) for prompt in (ONE, OTHER)]
        handles = [engine.submit_mixture(requests, [1, 1]) for _ in range(5)] + [engine.submit(ask()) for _ in range(3)]
        assert all(list(each)[-1].reason == "length" for each in handles)
        assert engine.engine.admission.num_running == engine.engine.admission.num_waiting == 0
        with pytest.raises(InputError, match="4 requests are mixed, and 3 run at once"):
            engine.submit_mixture(requests * 2, [1] * 4)


def test_all_end_together(engine, ask):
    requests = [ask(prompt, count=4000) for prompt in (ONE, OTHER)]
    handle = engine.submit_mixture(requests, [1, 1])
    outputs = iter(handle)
    for _ in range(4):
        next(outputs)
    handle.cancel()
    assert [each for each in outputs][-1].reason == "cancelled"
    assert engine.call(lambda: len(engine.engine.running)).result() == 0
    first = text(engine.submit_mixture([replace(each, max_tokens=9) for each in requests], [1, 1]))
    stopping = [replace(each, max_tokens=9, stop=(first[3],)) for each in requests]
    stopped = list(engine.submit_mixture(stopping, [1, 1]))
    assert stopped[-1].reason == "stop" and text(stopped) == first[: first.index(first[3])]
    assert engine.call(lambda: len(engine.engine.running)).result() == 0


def test_a_member_that_fails_ends_the_text(engine, ask, monkeypatch):
    scheduler, calls = type(engine.engine)._prepare, []

    def fails(self, sequence):
        calls.append(sequence)
        if len(calls) == 2:
            raise ValueError("no room in here")
        scheduler(self, sequence)

    monkeypatch.setattr(type(engine.engine), "_prepare", fails)
    outputs = list(engine.submit_mixture([ask(ONE, count=30), ask(OTHER, count=30)], [1, 1]))
    monkeypatch.undo()
    assert "no room in here" in outputs[-1].message
    assert isinstance(outputs[-1], Finished) and outputs[-1].reason in ("error", "refused")
    assert engine.call(lambda: len(engine.engine.running)).result() == 0
    assert output_ids(engine.submit(ask())) != []


@pytest.mark.parametrize("weights", [[], [0, 0], [1, -1], [1], [math.inf, 1]])
def test_weights_that_mean_nothing_are_refused(engine, ask, weights):
    with pytest.raises(InputError):
        engine.submit_mixture([ask(ONE), ask(OTHER)], weights)
    with pytest.raises(InputError, match="one model"):
        engine.submit_mixture([ask(ONE), ask(OTHER, model="window")], [1, 1])
    assert engine.engine.admission.num_waiting == 0
