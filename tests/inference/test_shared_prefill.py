"""What several prompts have in common is computed once, with and without a cache, and whoever of them is cancelled."""

from __future__ import annotations

from typing import Any

import pytest

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.engine import Engine
from synthe_core.inference.outputs import PrefillFinished, PromptLogprob, TokenOutput
from synthe_core.inference.sampling_params import SamplingParams
from tests.inference.conftest import output_ids

LONG = tuple(n * n % 251 for n in range(1500))


@pytest.fixture(params=[0, 1 << 24], ids=["without a cache", "with a cache"])
def decoder(request: Any, memory: Any, window: Any, whole: Any) -> Engine:
    return Engine([memory, window, whole], max_num_seqs=64, max_state_bytes=1 << 30, cache_bytes=request.param)


def add(engine: Engine, request: Any) -> tuple[Any, list[Any]]:
    outputs: list[Any] = []
    return engine.add_request(request, lambda output: outputs.append(output) or False), outputs


def finish(engine: Engine) -> None:
    while engine.has_unfinished:
        engine.step()


def alone(model: Any, request: Any) -> list[Any]:
    engine = Engine([model], max_state_bytes=1 << 30, cache_bytes=0)
    _, outputs = add(engine, request)
    finish(engine)
    return outputs[1:-1]


@pytest.mark.parametrize("name", ["memory", "window", "whole"])
def test_equal_prompts_are_computed_once(decoder: Engine, request: Any, ask: Any, name: str) -> None:
    warm = SamplingParams(temperature=0.9)
    requests = [ask(LONG, 4, model=name, sampling=warm, seed=seed) for seed in range(60)]
    outputs = [add(decoder, each)[1] for each in requests]
    finish(decoder)
    assert decoder.metrics.prompt_tokens == len(LONG)
    assert [each[0] for each in outputs] == [PrefillFinished(1500, 0)] + [PrefillFinished(1500, 1500)] * 59
    model = request.getfixturevalue(name)
    for number in (0, 1, 59):
        assert outputs[number][1:-1] == alone(model, requests[number])


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_another_takes_over_where_the_first_is_cancelled(decoder: Engine, memory: Any, ask: Any, steps: int) -> None:
    first, _ = add(decoder, ask(LONG, 4))
    _, second = add(decoder, ask(LONG, 4))
    for _ in range(steps):
        decoder.step()
    decoder.abort(first)
    finish(decoder)
    assert decoder.metrics.prompt_tokens == len(LONG), "nothing is computed twice"
    assert second[1:-1] == alone(memory, ask(LONG, 4))


def test_who_comes_later_goes_on_from_where_the_first_stands(decoder: Engine, memory: Any, ask: Any) -> None:
    """Also with another end: what they share is computed once, up to where the first stood."""
    first, _ = add(decoder, ask(LONG, 4))
    for _ in range(3):
        decoder.step()
    stands = first.num_computed_tokens
    assert 0 < stands < 1500
    other = (*LONG[:stands], 7, 8, 9)
    _, same = add(decoder, ask(LONG, 4))
    _, different = add(decoder, ask(other, 4, logprobs=0))
    decoder.step()
    decoder.abort(first)
    finish(decoder)
    assert decoder.metrics.prompt_tokens == len(LONG) + 3
    assert same[1:-1] == alone(memory, ask(LONG, 4))
    assert different[1:-1] == alone(memory, ask(other, 4, logprobs=0))


def test_prompts_that_part_are_read_together_until_then(decoder: Engine, memory: Any, ask: Any) -> None:
    requests = [ask((*LONG[:768], *[n] * 40), 4) for n in range(5)]
    outputs = [add(decoder, each)[1] for each in requests]
    finish(decoder)
    assert decoder.metrics.prompt_tokens == 768 + 5 * 40
    assert [each[1:-1] for each in outputs] == [alone(memory, each) for each in requests]


def test_logprobs_of_a_prompt_are_computed_once(decoder: Engine, memory: Any, ask: Any) -> None:
    requests = [ask(LONG[:600], 2, logprobs=count, prompt_logprobs=True) for count in (2, 2, 0, None)]
    outputs = [add(decoder, each)[1] for each in requests]
    finish(decoder)
    assert decoder.metrics.prompt_tokens == 3 * 600, "of each number of logprobs once"
    assert sum(isinstance(output, PromptLogprob) for output in outputs[1]) == 600
    assert [each[1:-1] for each in outputs] == [alone(memory, each) for each in requests]


def test_a_pass_that_fails_ends_all_that_need_it(decoder: Engine, memory: Any, ask: Any, monkeypatch: Any) -> None:
    bad = [add(decoder, ask((66,) * 300, 4))[1] for _ in range(3)]
    _, good = add(decoder, ask(LONG[:300], 4))
    expected, forward = alone(memory, ask(LONG[:300], 4)), memory.forward

    def failing(tokens: Any, *rest: Any) -> Any:
        if bool((tokens == 66).all(1).any()):
            raise RuntimeError("no such kernel")
        return forward(tokens, *rest)

    monkeypatch.setattr(memory, "forward", failing)
    finish(decoder)
    assert [each[-1].reason for each in bad] == ["error"] * 3 and good[1:-1] == expected


def test_choices_of_a_prompt_share_its_state_and_not_their_own(memory: Any, ask: Any) -> None:
    """Sixty sequences begin from one object, and each of them is what it is alone."""
    warm = [SamplingParams(temperature=1.0, top_k=1 + n) for n in range(60)]
    requests = [ask(LONG[:64], 9, sampling=each, seed=n, logprobs=1) for n, each in enumerate(warm)]
    with AsyncEngine([memory], max_num_seqs=64, max_state_bytes=1 << 28, cache_bytes=0) as engine:
        handles = engine.call(lambda: [engine.submit(each) for each in requests]).result()
        together = [[output for output in handle if isinstance(output, TokenOutput)] for handle in handles]
        assert engine.status()["prompt_tokens"] == 64
        for number in range(0, 60, 7):
            own = [output for output in engine.submit(requests[number]) if isinstance(output, TokenOutput)]
            assert own == together[number] or not engine.status()["exact"]
            assert output_ids(own) == output_ids(together[number])
