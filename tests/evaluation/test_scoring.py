"""Scores through shared prefixes are those of each request by itself, whatever the batch."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from synthe_core.evaluation import reading
from synthe_core.evaluation.reading import Reader
from synthe_core.evaluation.scoring import Continuation, score
from synthe_core.model import prefill
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

VOCAB = 50
BLOCKS: dict[str, list[Any]] = {
    "delta": ["momentum", {"type": "delta", "heads": 2}, "mlp"],
    "attention": [{"type": "attention", "heads": 2}, "mlp"],
    "window": [{"type": "attention", "heads": 2, "window": 5}, "mlp"],
    "mamba": ["mamba"],
    "kalman": ["kalman", {"type": "attention", "heads": 2, "when": {"signal": "surprise", "above": 0.5}}],
    "tiers": [{"type": "tiers"}, {"type": "slots", "heads": 2}],
}


def model_of(name: str, **spec: Any) -> LanguageModel:
    torch.manual_seed(0)
    model = LanguageModel(ModelSpec(width=32, blocks=2, block=BLOCKS[name], **spec), VOCAB).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def requests(seed: int = 1) -> list[Continuation]:
    """Questions with four answers each, half of them behind one long heading, some twice, some within another."""
    draw = random.Random(seed)
    head = [draw.randrange(VOCAB) for _ in range(40)]
    continuations = []
    for number in range(9):
        context = (head if number % 2 else []) + [draw.randrange(VOCAB) for _ in range(draw.randrange(1, 20))]
        continuations += [
            Continuation(context, [draw.randrange(3) for _ in range(draw.randrange(1, 6))]) for _ in range(4)
        ]
    longer = Continuation([*continuations[0].context, *continuations[0].continuation], [3])
    return [*continuations, continuations[0], longer, Continuation([7], [5])]


@torch.no_grad()
def alone(model: LanguageModel, request: Continuation) -> tuple[float, bool]:
    sequence = [*request.context, *request.continuation]
    log_probs = model(torch.tensor([sequence[:-1]]))[0][0].log_softmax(-1)
    places = range(len(request.context) - 1, len(sequence) - 1)
    total = sum(log_probs[place, sequence[place + 1]].item() for place in places)
    return total, all(int(log_probs[place].argmax()) == sequence[place + 1] for place in places)


@pytest.mark.parametrize("name", BLOCKS)
def test_batched_scores_equal_those_of_single_requests(name: str) -> None:
    model, batch_requests = model_of(name), requests()
    expected = [alone(model, request) for request in batch_requests]
    for batch in (1, 32):
        reader = Reader(model, batch)
        scores = dict(score(reader, batch_requests))
        assert sorted(scores) == list(range(len(batch_requests)))
        for index, (loglikelihood, greedy) in enumerate(expected):
            assert scores[index].loglikelihood == pytest.approx(loglikelihood, abs=1e-4)
            assert scores[index].greedy == greedy
        assert reader.counts.requested == sum(len(r.context) + len(r.continuation) - 1 for r in batch_requests)
        assert reader.counts.computed < 0.5 * reader.counts.requested


def test_greedy_marks_the_most_likely_answer() -> None:
    model = model_of("delta")
    text = [7, 8, 9]
    with torch.no_grad():
        likeliest = int(model(torch.tensor([text]))[0][0, -1].argmax())
    scores = dict(score(Reader(model), [Continuation(text, [n]) for n in range(VOCAB)]))
    assert [index for index, each in scores.items() if each.greedy] == [likeliest]
    assert sum(torch.tensor(each.loglikelihood).exp() for each in scores.values()) == pytest.approx(1, abs=1e-5)


def test_answers_of_one_token_take_one_pass() -> None:
    reader = Reader(model_of("mamba"))
    list(score(reader, [Continuation([1, 2, 3, 4], [n]) for n in range(4)]))
    assert reader.counts.computed == 4


@pytest.mark.parametrize("name", ["delta", "attention"])
def test_long_texts_are_scored_in_pieces(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefill, "PREFILL", 7)
    model, batch_requests = model_of(name), requests(2)
    scores = dict(score(Reader(model, 4), batch_requests))
    for index, request in enumerate(batch_requests):
        assert scores[index].loglikelihood == pytest.approx(alone(model, request)[0], abs=1e-4)


def test_nothing_to_score() -> None:
    reader = Reader(model_of("mamba"))
    assert dict(score(reader, [Continuation([1], [])])) == {0: (0.0, True)}
    assert dict(score(reader, [])) == {} and reader.counts.computed == 0


def test_the_number_of_states_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("attention")
    assert Reader(model, 32).rows(10, 50) == 32
    monkeypatch.setattr(reading, "MAX_STATE_BYTES", 5 * model.state_bytes(50))
    assert Reader(model, 32).rows(10, 50) == 5 and Reader(model).rows(10, 10**6) == 1


def test_a_check_ends_the_work() -> None:
    def check() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(score(Reader(model_of("mamba"), check=check), requests()))
