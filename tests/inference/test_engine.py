"""The engine answers each request as if it were alone, and keeps to what it promises whatever happens beside it."""

from __future__ import annotations

import threading
import time

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.inference.admission import AdmissionControl
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.offline import generate
from synthe_core.inference.outputs import Finished, PrefillFinished, PromptLogprob, TokenOutput
from synthe_core.inference.request import Busy, NotFound, Request
from synthe_core.inference.sampling_params import SamplingParams
from tests.inference.conftest import GREEDY, offline_tokens, output_ids, reference_tokens, text


def test_the_engine_equals_offline_generation(engine, memory, ask):
    events = list(engine.submit(ask(b"Once upon", 20)))
    assert output_ids(events) == reference_tokens(memory.model, b"Once upon", 20)
    assert output_ids(events) == offline_tokens(memory.model, [b"Once upon"], 20)[0]
    assert events[0] == PrefillFinished(9, 0) and events[-1].reason == "length"
    assert (events[-1].num_prompt_tokens, events[-1].num_output_tokens) == (9, 20)
    deltas = generate(memory, ["Once upon"], 20, sampling=GREEDY)
    assert text(events) == "".join(delta.text for delta in deltas)


def test_a_long_prompt_is_read_in_chunks(engine, memory, ask):
    prompt = tuple(int(i) for i in torch.randint(0, 256, (777,)))
    assert output_ids(engine.submit(ask(prompt, 8))) == reference_tokens(memory.model, prompt, 8)


@pytest.mark.parametrize("model", ["memory", "window", "whole"])
def test_outputs_do_not_depend_on_the_batch(engine, ask, model):
    """Rows that come and go, of all lengths, beside long prompts: every answer and every probability is the same."""
    drawn = torch.Generator().manual_seed(3)
    requests = []
    for number in range(14):
        length = int(torch.randint(1, 60 if number % 6 else 400, (1,), generator=drawn))
        prompt = tuple(torch.randint(0, 256, (length,), generator=drawn).tolist())
        warm = SamplingParams(temperature=0.9, top_p=0.9) if number % 3 == 0 else GREEDY
        requests.append(ask(prompt, 1 + number % 11 * 3, model=model, sampling=warm, seed=number))
    together = [engine.submit(request) for request in requests]
    together[5].cancel()
    outputs = [[event for event in ticket if isinstance(event, TokenOutput)] for ticket in together]
    with AsyncEngine(list(engine.models.values()), cache_bytes=0, max_state_bytes=1 << 28) as fresh:
        exact = fresh.status()["exact"]
        for number, request in enumerate(requests):
            if number != 5:
                alone = [event for event in fresh.submit(request) if isinstance(event, TokenOutput)]
                assert output_ids(alone) == output_ids(outputs[number])
                for one, other in zip(alone, outputs[number], strict=True):
                    assert one.logprob.logprob == (
                        other.logprob.logprob if exact else pytest.approx(other.logprob.logprob, abs=1e-4)
                    )
                    assert one.confidence == (other.confidence if exact else pytest.approx(other.confidence, abs=1e-4))


def test_a_prompt_of_several_requests_is_computed_once(engine, ask):
    tickets = [engine.submit(ask(b"x" * 100, 3, sampling=SamplingParams(), seed=seed)) for seed in range(6)]
    assert len({tuple(output_ids(ticket)) for ticket in tickets}) > 1
    assert engine.status()["prompt_tokens"] == 100 and engine.status()["cached_tokens"] == 500


def test_a_shared_prefix_does_not_change_outputs(engine, ask):
    """What another prompt has left in the cache is used only where the numbers stay the same, to the bit."""
    shared = bytes(range(50, 150))
    list(engine.submit(ask(shared + b"one", 3)))
    events = list(engine.submit(ask(shared + b"other", 9, logprobs=0)))
    assert events[0].num_cached_tokens == 96
    with AsyncEngine([engine.models["memory"]], cache_bytes=0, max_state_bytes=1 << 28) as fresh:
        alone = list(fresh.submit(ask(shared + b"other", 9, logprobs=0)))
        assert alone[1:-1] == events[1:-1] or not fresh.status()["exact"]


def test_the_seed_determines_the_text(engine, ask):
    warm = SamplingParams(temperature=1.0)
    one, again, other = (list(engine.submit(ask(count=20, sampling=warm, seed=seed))) for seed in (7, 7, 8))
    assert output_ids(one) == output_ids(again) != output_ids(other)


def test_logprobs_are_of_the_model_before_sampling(engine, memory, ask):
    events = list(
        engine.submit(ask(count=4, logprobs=3, sampling=SamplingParams(temperature=2.0, top_k=5), prompt_logprobs=True))
    )
    tokens = [*b"Once upon", *output_ids(events)]
    chances = memory.model(torch.tensor([tokens]))[0][0].log_softmax(-1)
    logprobs_of_prompt = [event for event in events if isinstance(event, PromptLogprob)]
    assert logprobs_of_prompt[0] == PromptLogprob(ord("O"), None) and len(logprobs_of_prompt) == 9
    for place, event in enumerate([*logprobs_of_prompt[1:], *(e for e in events if isinstance(e, TokenOutput))]):
        assert event.token_id == tokens[place + 1]
        assert event.logprob.logprob == pytest.approx(float(chances[place, event.token_id].detach()), abs=1e-4)
        assert [one.token_id for one in event.top_logprobs] == chances[place].topk(3).indices.tolist()


def test_zero_tokens_only_prefill(engine, ask):
    events = list(engine.submit(ask(count=0, prompt_logprobs=True, logprobs=0)))
    assert output_ids(events) == [] and events[-1].reason == "length"
    assert sum(isinstance(event, PromptLogprob) for event in events) == 9


def test_the_stop_string_is_removed(engine, ask):
    whole = text(engine.submit(ask(count=30)))
    stop = whole[10:13]
    events = list(engine.submit(ask(count=30, stop=(stop,))))
    assert text(events) == whole[: whole.index(stop)] and events[-1].reason == "stop"


def test_the_end_of_the_document_ends_it(engine, memory, ask):
    never = SamplingParams(temperature=0, logit_bias={256: 1000.0})
    events = list(engine.submit(ask(count=5, sampling=never, ignore_eos=False)))
    assert output_ids(events) == [256] and events[-1].reason == "stop" and text(events) == ""
    assert output_ids(engine.submit(ask(count=5, sampling=never))) == [256] * 5


def test_penalties_and_bias(engine, ask):
    banned = SamplingParams(temperature=0, logit_bias={token: -100.0 for token in range(100)})
    assert min(output_ids(engine.submit(ask(count=20, sampling=banned)))) >= 100
    shy = SamplingParams(temperature=0, presence_penalty=1000.0)
    written = output_ids(engine.submit(ask(count=40, sampling=shy)))
    assert len(set(written)) == 40


def test_json_follows_a_schema(engine, ask):
    import json

    pytest.importorskip("llguidance")
    properties = {"a": {"enum": ["x", "yy"]}, "b": {"type": "boolean"}}
    schema = {"type": "object", "properties": properties, "required": ["a", "b"], "additionalProperties": False}
    events = list(engine.submit(ask(count=60, json_schema=schema, ignore_eos=False)))
    value = json.loads(text(events))
    assert value["a"] in ("x", "yy") and isinstance(value["b"], bool) and events[-1].reason == "stop"
    with pytest.raises(InputError, match="schema"):
        engine.submit(ask(json_schema={"type": "no such type"}))


def test_invalid_requests_are_refused(engine, ask):
    for wrong in (
        ask(()),
        ask((257,)),
        ask((-1,)),
        ask(count=-1),
        ask(logprobs=999),
        ask(sampling=SamplingParams(logit_bias={999: 1.0})),
    ):
        with pytest.raises(InputError):
            engine.submit(wrong)
    with pytest.raises(NotFound, match="memry"):
        engine.submit(ask(model="memry"))
    with pytest.raises(NotFound):
        engine.submit(ask(model="memory:nothing"))


def test_a_cancelled_sequence_frees_its_slot(memory, ask):
    with AsyncEngine([memory], max_num_seqs=1, max_state_bytes=1 << 28) as engine:
        long, short = engine.submit(ask(count=100_000)), engine.submit(ask(count=2))
        next(iter(long))
        long.cancel()
        assert [event for event in short][-1].reason == "length"
        assert list(long)[-1].reason == "cancelled"


def test_a_full_queue_is_an_error(memory, ask):
    with AsyncEngine([memory], max_num_seqs=1, max_waiting=2, max_state_bytes=1 << 28) as engine:
        tickets = [engine.submit(ask(count=100_000))]
        time.sleep(0.2)
        with pytest.raises(Busy) as busy:
            for _ in range(5):
                tickets.append(engine.submit(ask(count=1)))
        assert busy.value.retry >= 1 and len(tickets) >= 3
        for ticket in tickets:
            ticket.cancel()
        assert [list(ticket)[-1].reason for ticket in tickets] == ["cancelled"] * len(tickets)
        assert engine.status()["waiting"] == engine.status()["live"] == 0
    with AsyncEngine([memory], max_state_bytes=10) as engine, pytest.raises(InputError, match="state"):
        engine.submit(ask())


def test_a_full_queue_says_nothing_of_other_owners():
    admission = AdmissionControl(max_num_seqs=1, max_waiting=7, max_state_bytes=1)
    admission.enqueue("one")
    admission.acquire(1, "one")
    for owner in ["one"] * 5 + ["two"] * 2:
        admission.check(1, owner)
        admission.enqueue(owner)
    for owner, line in [
        ("one", "the queue is full (5 requests of this API key are in it)"),
        ("two", "the queue is full (2 requests of this API key are in it)"),
        ("three", "the queue is full (0 requests of this API key are in it)"),
        ("", "7 requests are waiting already"),
    ]:
        with pytest.raises(Busy) as busy:
            admission.check(1, owner)
        assert busy.value.message == line


def test_a_pass_that_fails_fails_its_rows_only(engine, memory, ask, monkeypatch):
    other = engine.submit(ask(count=200, model="window"))
    next(iter(other))
    monkeypatch.setattr(memory, "forward", lambda *_: 1 / 0)
    last = list(engine.submit(ask()))[-1]
    assert last.reason == "error" and "division" in last.message and "\n" not in last.message
    monkeypatch.undo()
    assert list(engine.submit(ask()))[-1].reason == "length"
    assert list(other)[-1].reason == "length"


def test_a_failing_callback_cancels_its_request(engine, ask):
    def deliver(event: object) -> None:
        raise RuntimeError("gone")

    engine.submit(ask(count=50), deliver)
    assert list(engine.submit(ask()))[-1].reason == "length"


def test_close_finishes_or_cancels_requests(memory, ask):
    engine = AsyncEngine([memory], max_state_bytes=1 << 28)
    list(engine.submit(ask()))
    short, endless = engine.submit(ask(count=4)), engine.submit(ask(count=100_000))
    next(iter(endless))
    engine.close(deadline=2.0)
    assert list(short)[-1].reason == "length" and list(endless)[-1].reason == "shutdown"
    with pytest.raises(Busy):
        engine.submit(ask())
    engine.close()


def test_requests_from_many_threads(engine, ask):
    answers: list[list[int]] = []

    def one() -> None:
        answers.append(output_ids(engine.submit(ask(count=9))))

    threads = [threading.Thread(target=one) for _ in range(16)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    assert len(answers) == 16 and all(answer == answers[0] for answer in answers)


def test_embeddings_and_other_work_with_a_model(engine, memory, ask):
    given = engine.embed("memory", [b"abc", b"defgh"])
    expected = memory.model.hidden(torch.tensor([list(b"defgh")]))[0].mean(1)[0]
    assert given.shape == (2, 24) and torch.allclose(given[1], expected, atol=1e-5)
    looked = engine.with_model("memory", b"abcdefghijkl", lambda served: served.name)
    assert looked.result() == "memory"
    with pytest.raises(InputError):
        engine.with_model("memory", [1 << 20], lambda served: served.name)


def test_status_counts(engine, ask):
    list(engine.submit(ask(count=5)))
    list(engine.submit(ask(count=5)))
    status = engine.status()
    assert status["requests"] == 2 and status["written_tokens"] == 10 and status["failed"] == 0
    assert status["cached_tokens"] == 9 and status["prompt_tokens"] == 9 and status["cache"]["hits"] == 1
    assert status["state_bytes"] == 0 and status["state_bytes_per_sequence"]["memory"] > 0


def test_requests_are_plain_values():
    assert Request("m", (1,)) == Request("m", (1,)) and isinstance(Finished("stop", "", 0, 0, 0), Finished)
