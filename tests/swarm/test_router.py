"""The router: words, an estimate that is updated exactly, combinations, and a decision in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from synthe_core.swarm.features import MAX_SNAPSHOT, SAMPLES, Standardizer
from synthe_core.swarm.router.bm25 import BM25, words
from synthe_core.swarm.router.decision import Decision
from synthe_core.swarm.router.estimator import Estimator
from synthe_core.swarm.router.linear import BayesianLinear
from synthe_core.swarm.router.observations import Observation, Observations, rate
from synthe_core.swarm.router.pathways import Pathways
from synthe_core.swarm.router.router import Router
from synthe_core.swarm.spec import PathwaySpec, SwarmSpec
from synthe_core.swarm.store import Store
from synthe_core.swarm.text_embedding import shortened

SIZE = 24
TOPICS = {
    "python": ["function", "loop", "list", "variable", "code", "bug", "import", "class"],
    "maths": ["sum", "apples", "times", "divided", "left", "each", "number", "total"],
    "history": ["king", "war", "century", "empire", "treaty", "battle", "queen", "year"],
}


def embed(texts: Sequence[str]) -> np.ndarray:
    """A stand-in for a model's embedding with what matters of one: words of a topic share a direction, all share one
    large dimension."""
    rows = []
    for text in texts:
        draw = np.random.default_rng(sum(map(ord, text)))
        row = draw.normal(0, 0.3, SIZE)
        row[0] += 40
        for place, topic in enumerate(TOPICS.values(), 1):
            row[3 * place : 3 * place + 3] += 2 * sum(word in topic for word in words(text))
        rows.append(row)
    return np.array(rows, dtype=np.float32)


def request_about(topic: str, seed: int) -> str:
    draw = np.random.default_rng(seed)
    return " ".join([*draw.choice(TOPICS[topic], 4), *draw.choice(list("abcdefg"), 4)])


def spec(**router: float) -> SwarmSpec:
    specialists = {name: {"capabilities": own[0]} for name, own in TOPICS.items()}
    return SwarmSpec.model_validate({"base": "x", "specialists": specialists, "router": router})


@pytest.fixture
def store(tmp_path):
    opened = Store(tmp_path / "swarm.db")
    yield opened
    opened.close()


def test_words_match_by_rarity():
    index = BM25("ab")
    index.add("a", "python functions and the web")
    index.add("b", "poems and the sea")
    scores = index.scores("a function of the sea")
    assert scores["a"] > 0 and scores["b"] > 0
    assert index.shares("nothing here", 4.0) == {"a": 0, "b": 0}
    chance, strong = index.shares("a function of the sea", 4.0), index.shares("functions of the sea, and poems", 4.0)
    assert 0 < sum(chance.values()) < sum(strong.values()) < 1, "a chance word says little"
    assert chance["a"] / chance["b"] == pytest.approx(scores["a"] / scores["b"])
    assert index.matches("the function", "a") == ["function", "the"]
    before = index.scores("storm")["b"]
    index.add("b", "storm")
    assert before == 0 < index.scores("storm")["b"]
    assert words("Classes, boxes; glass 3x") == ["classe", "boxe", "glass", "3x"]


def test_what_no_specialist_covers_goes_to_the_fallback_before_anything_is_rated():
    settings = spec(explore=0).model_dump()
    settings["specialists"] = {name: {"capabilities": own} for name, own in TOPICS.items()}
    router = Router(SwarmSpec.model_validate(settings), embed)
    uncovered = [" ".join(np.random.default_rng(n).choice(list("abcdefghijklm"), 6)) for n in range(40)]

    def decide(text: str) -> Decision:
        return router.decide(text, embed([text])[0])[0]

    for seed in range(20):
        for topic in TOPICS:
            assert decide(request_about(topic, seed)).specialists[0] == topic
    assert np.mean([decide(text).answering == ("base",) for text in uncovered]) > 0.35
    text = next(text for text in uncovered if not decide(text).specialists)
    assert sum(each.cold for each in decide(text).candidates) < 0.5
    observation = router.decide(text, embed([text])[0])[1]
    for _ in range(10):  # and no longer once somebody has succeeded at it
        router.learn(replace(observation, outcomes={"history": 1.0}))
    assert decide(text).answering == ("history",)
    router.estimator = Estimator(router.estimator.profiles, router.spec.router, router.estimator.standardizer)
    assert all(decide(text).specialists for text in uncovered), "somebody must answer where nobody is an answer"


def test_updates_give_the_posterior_of_all_observations_at_once():
    draw = np.random.default_rng(0)
    xs, ys = draw.normal(size=(60, 9)), draw.normal(size=60)
    mean, deviation, noise = draw.normal(size=9), draw.uniform(0.5, 2, 9), 0.3
    one, other = BayesianLinear(mean, deviation, noise), BayesianLinear(mean, deviation, noise)
    for x, y in zip(xs, ys, strict=True):
        one.update(x, y)
    other.fit(xs, ys)
    precision = np.diag(deviation**-2.0) + xs.T @ xs / noise**2
    exact = np.linalg.solve(precision, mean / deviation**2 + xs.T @ ys / noise**2)
    for each in (one, other):
        assert np.allclose(each.mean, exact, atol=1e-10)
        assert np.allclose(each.covariance, np.linalg.inv(precision), atol=1e-10)
        assert each.observations == 60
    _, uncertain = BayesianLinear(mean, deviation, noise).predict(xs[0])
    assert one.predict(xs[0])[1] < uncertain


def test_what_all_texts_share_is_taken_out():
    rows = embed([*SAMPLES, *(request_about(topic, i) for topic in TOPICS for i in range(9))])
    standardizer = Standardizer.of(rows[:24])
    moved = [standardizer.observe(each) for each in rows[24:]]
    assert sum(moved) == 1 and moved.index(True) == 11  # with the 36th text
    z = standardizer(rows[24:])
    assert np.allclose(np.linalg.norm(z, axis=1), 1)
    raw = rows[24:] / np.linalg.norm(rows[24:], axis=1, keepdims=True)
    apart = lambda r: float((r[:9] @ r[:9].T).mean() - (r[:9] @ r[9:].T).mean())  # noqa: E731
    assert apart(z) > 3 * apart(raw)
    assert np.allclose(Standardizer(*standardizer.state())(rows), Standardizer.of(rows)(rows))


def test_long_requests_are_read_at_both_ends():
    assert shortened(range(5), 6) == (0, 1, 2, 3, 4)
    assert shortened(range(100), 5) == (0, 1, 97, 98, 99)


def test_capabilities_route_before_anything_is_rated():
    router = Router(spec(explore=0, max_specialists=1), embed)
    decision, _ = router.route("a function with a loop over a list")
    assert decision.specialists == ("python",) and decision.domain == "function"
    assert "by its capabilities" in decision.why and "function" in decision.why
    assert decision.candidates[0].name == "python"
    assert 0.99 < sum(each.cold for each in decision.candidates) < 1  # the rest is nobody's


def test_ratings_teach_and_are_remembered(store):
    observations = Observations(store, "digest")
    router = Router(spec(explore=0, max_specialists=1), embed, observations)
    # What capabilities say is wrong here: history answers what sounds like maths.
    for seed in range(30):
        text = request_about("maths", seed)
        decision, observation = router.route(text)
        observations.add(observation, "ann", f"answer {seed}")
        (name,) = decision.answering
        rated = rate(store, f"answer {seed}", {name: float(name == "history"), "history": 1.0})
        assert rated is not None and np.allclose(rated.embedding, observation.embedding, atol=0.05)
        router.learn(rated)
    assert router.route(request_about("maths", 99))[0].specialists == ("history",)
    again = Router(spec(explore=0, max_specialists=1), embed, observations)
    one, other = (each.decide("sum of apples", embed(["sum of apples"])[0])[0] for each in (router, again))
    assert one.specialists == other.specialists == ("history",)
    assert "30 rated answers" in other.why
    assert Observations(store, "another base").newest(10) == []


def test_exploration_is_bounded():
    router = Router(spec(explore=0.2), embed, generator=np.random.default_rng(0))
    router.estimator.standardizer.count = MAX_SNAPSHOT  # the centre stays, and with it what follows
    for model in router.estimator.models.values():
        model.mean[:] = 0  # nothing is known, so that draws are as good as random
    explored = [router.route(request_about("python", seed))[0].explored for seed in range(100)]
    assert 15 <= sum(explored) <= 21
    greedy = Router(spec(explore=0), embed)
    assert not any(greedy.route(request_about("python", seed))[0].explored for seed in range(50))


def test_nobody_answers_what_nobody_can():
    router = Router(spec(explore=0, threshold=0.95), embed)
    decision, _ = router.route("zzz qqq")
    assert decision.specialists == () and decision.answering == ("base",) and "base answers" in decision.why
    empty = Router(SwarmSpec(base="x"), embed)
    decision, _ = empty.route("hello")
    assert decision.answering == ("base",) and "no specialists" in decision.why


def test_several_answer_what_is_between_them():
    alone, both = "function loop list code bug", "function king loop list"

    def gap(text: str) -> float:
        first, second, *_ = Router(spec(), embed).route(text)[0].candidates
        return first.estimate - second.estimate

    assert gap(both) < 0.7 < gap(alone)
    router = Router(spec(explore=0, margin=0.7, threshold=0), embed)
    assert router.route(alone)[0].specialists == ("python",)
    assert set(router.route(both)[0].specialists) == {"python", "history"}
    single = Router(spec(explore=0, margin=1, threshold=0, max_specialists=1), embed)
    assert len(single.route(both)[0].specialists) == 1


def test_combinations_are_strengthened_and_fade(store):
    pathways = Pathways(store, PathwaySpec(rate=0.5, half_life=10))
    pathways.learn(["b", "a"], 1.0)
    assert pathways.weight("a", "b") == pathways.weight("b", "a") == pytest.approx(0.5)
    pathways.learn(["a", "b"], 1.0)
    strong = pathways.weight("a", "b")
    assert strong > 0.7
    for _ in range(10):
        pathways.learn(["c"], 1.0)
    assert pathways.weight("a", "b") == pytest.approx(strong / 2)
    pathways.learn(["a", "b", "c"], 0.0)
    assert pathways.weight("a", "b") < strong / 3
    assert {each.members for each in pathways.all()} == {("a", "b"), ("a", "c"), ("b", "c"), ("c",)}
    assert all(one.weight >= other.weight for one, other in pairwise(pathways.all()))


def test_a_pathway_lets_a_partner_join(store):
    text = "function king loop list"
    for rated, together in ((0, False), (12, True)):
        pathways = Pathways(store, PathwaySpec(influence=0.9))
        for _ in range(rated):
            pathways.learn(["python", "history"], 1.0)
        router = Router(
            spec(explore=0, margin=0.05).model_copy(update={"pathways": PathwaySpec(influence=0.9)}),
            embed,
            pathways=pathways,
        )
        assert (set(router.route(text)[0].specialists) == {"python", "history"}) is together


def test_observations_of_other_specialists_are_left_out():
    router = Router(spec(), embed)
    observation = Observation("a king", embed(["a king"])[0], {"gone": 1.0}, {"gone": 1.0, "history": 1.0})
    router.learn(observation)
    assert router.estimator.models["history"].observations == 1
    router.learn(replace(observation, outcomes={}))
    assert router.estimator.models["history"].observations == 1
