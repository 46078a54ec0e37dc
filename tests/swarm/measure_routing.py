"""Measures the router: `python -m tests.swarm.measure_routing --cache embeddings.npz`.

Specialists are those of each topics set with code and mathematics beside. Accuracy is the share of requests that go to
the right one, after 0, 20 and 200 labelled requests drawn from the training rows, the mean over seeds; regret the
number of 2,000 requests that went to a wrong one, where only the outcome of the chosen specialist is known afterwards.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.interop.load import load_model
from synthe_core.swarm.features import SAMPLES, Standardizer, capability_texts
from synthe_core.swarm.models import BASE
from synthe_core.swarm.router.bm25 import BM25, words
from synthe_core.swarm.router.estimator import Estimator
from synthe_core.swarm.router.observations import Observation
from synthe_core.swarm.router.router import Router, profiles
from synthe_core.swarm.spec import RouterSpec, SwarmSpec
from synthe_core.swarm.text_embedding import TextEmbedder
from tests.paths import SHARED
from tests.swarm.routing_data import BESIDE, TOPICS, Request, beside, requests, specialists

LABELLED = (0, 20, 200)
Predict = Callable[[str], str]


class Embeddings:
    """Embeddings of texts by the base, each computed once and kept in a file."""

    def __init__(self, path: Path | None, blocks: int | None = None) -> None:
        self.path, self.blocks, self._engine = path, blocks, None
        self.known: dict[str, np.ndarray] = {}
        if path is not None and path.is_file():
            with np.load(path) as file:
                self.known = dict(zip(json.loads(str(file["texts"])), file["embeddings"], strict=True))

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        for first in range(0, len(new), 64):
            part = new[first : first + 64]
            self.known |= zip(part, self._embed(part).astype(np.float16), strict=True)
            print(f"  embedded {first + len(part)} of {len(new)}", file=sys.stderr)
        return np.stack([self.known[text] for text in texts]).astype(np.float32)

    def _embed(self, texts: Sequence[str]) -> np.ndarray:
        if self._engine is None:
            path = next((SHARED / "models" / "smollm2-135m-instruct").glob("*.gguf"))
            self._engine = AsyncEngine([load_model(path, BASE)])
        return TextEmbedder(self._engine, BASE, self.blocks)(texts)

    def save(self) -> None:
        if self.path is not None:
            texts = json.dumps(list(self.known))
            np.savez(self.path, texts=np.array(texts), embeddings=np.stack(list(self.known.values())))
        if self._engine is not None:
            self._engine.close()


def by_keywords(topic: str, labelled: Iterable[Request], embed: Embeddings) -> Predict:
    """The specialist most of whose capabilities' words are in the request; the first for none. It does not learn."""
    lists = {name: set(words(" ".join((name, *spec.capabilities)))) for name, spec in specialists(topic).items()}

    def predict(text: str) -> str:
        own = words(text)
        return max(lists, key=lambda name: sum(word in lists[name] for word in own))

    return predict


def by_words(topic: str, labelled: Iterable[Request], embed: Embeddings) -> Predict:
    """BM25 over the capabilities and the labelled requests of each."""
    index = BM25(specialists(topic))
    for name, spec in specialists(topic).items():
        index.add(name, " ".join((name, *spec.capabilities)))
    for each in labelled:
        index.add(each.specialist, each.text)

    def predict(text: str) -> str:
        scores = index.scores(text)
        return max(scores, key=lambda name: scores[name])

    return predict


def by_embedding(topic: str, labelled: Iterable[Request], embed: Embeddings) -> Predict:
    """The nearest mean of a specialist's labelled requests; for those without any, its nearest capability."""
    labelled = list(labelled)
    standardizer = Standardizer.of(np.concatenate([embed(SAMPLES), *(embed([row.text]) for row in labelled)]))
    each = profiles(specialists(topic), embed)
    centre = np.concatenate([profile.embeddings for profile in each.values()]).mean(0)
    places = {name: standardizer.direction(profile.embeddings - centre) for name, profile in each.items()}
    rows: dict[str, list[np.ndarray]] = {}
    for request in labelled:
        rows.setdefault(request.specialist, []).append(standardizer(embed([request.text])[0]))
    for name, own in rows.items():
        mean = np.mean(own, 0)
        places[name] = (mean / np.linalg.norm(mean))[None]

    def predict(text: str) -> str:
        z = standardizer(embed([text])[0])
        return max(places, key=lambda name: float((places[name] @ z).max()))

    return predict


def by_router(topic: str, labelled: Iterable[Request], embed: Embeddings) -> Predict:
    """The router's estimate. A label says who is right and, of all others, that they are not."""
    names = specialists(topic)
    general = embed(SAMPLES)
    estimator = Estimator(profiles(names, embed), RouterSpec(), Standardizer.of(general), general)
    rated: list[Observation] = []
    for each in labelled:
        embedding = embed([each.text])[0]
        if estimator.standardizer.observe(embedding):
            estimator.refit(rated)
        features = estimator.features(each.text, embedding)
        outcomes = {name: float(name == each.specialist) for name in names}
        estimator.learn(each.text, features, outcomes)
        rated.append(Observation(each.text, embedding, features.shares, outcomes))

    def predict(text: str) -> str:
        estimates = estimator.estimates(estimator.features(text, embed([text])[0]))
        return max(estimates, key=lambda name: estimates[name][0])

    return predict


METHODS = {"keyword rules": by_keywords, "BM25": by_words, "embeddings": by_embedding, "router": by_router}


def accuracy(predict: Predict, rows: Sequence[Request]) -> float:
    return float(np.mean([predict(row.text) == row.specialist for row in rows]))


def labelled_requests(topic: str, count: int, seed: int) -> list[Request]:
    """Drawn from the training rows of the set, and one of code or mathematics for every three of it."""
    draw = np.random.default_rng(seed)
    own, others = requests(topic, "train"), beside("train")
    num_others = count // 4
    rows = [own[i] for i in draw.permutation(len(own))[: count - num_others]]
    rows += [others[i] for i in draw.permutation(len(others))[:num_others]]
    return [rows[i] for i in draw.permutation(len(rows))]


def measure_accuracy(embed: Embeddings, seeds: int) -> None:
    for topic in TOPICS:
        test, others = requests(topic, "test"), beside("test")
        for name, method in METHODS.items():
            cells = []
            for count in LABELLED:
                scores = []
                for seed in range(seeds if count else 1):
                    predict = method(topic, labelled_requests(topic, count, seed), embed)
                    scores.append((accuracy(predict, test), accuracy(predict, others)))
                own, rest = np.mean(scores, 0)
                cells.append(f"{own:6.1%} {rest:6.1%}")
            print(f"{topic:22s} {name:14s} {'   '.join(cells)}", flush=True)


def stream_of(topics: Sequence[str], count: int, seed: int) -> list[Request]:
    """Requests of several sets, each with the set's name before its specialist's where there are several."""
    rows = [row for topic in topics for row in requests(topic, "train")] + beside("train")
    order = np.random.default_rng(seed).permutation(len(rows))
    return [rows[i] for i in order[:count]]


def regret(embed: Embeddings, topic: str, spec: dict[str, float], seed: int, count: int = 2000) -> list[int]:
    """How many of the first n requests went to a wrong specialist, for n = 1 ... count."""
    settings = {
        "base": BASE,
        "specialists": specialists(topic),
        "router": {"max_specialists": 1, "threshold": 0, **spec},
    }
    router = Router(SwarmSpec.model_validate(settings), embed, generator=np.random.default_rng(seed))
    wrong, curve = 0, []
    for row in stream_of([topic], count, seed):
        decision, observation = router.decide(row.text, embed([row.text])[0])
        (name,) = decision.answering
        success = float(name == row.specialist)
        wrong += not success
        curve.append(wrong)
        router.learn(type(observation)(row.text, observation.embedding, observation.shares, {name: success}))
    return curve


def measure_regret(embed: Embeddings, seeds: int) -> None:
    marks = (100, 250, 500, 1000, 1500, 2000)
    for topic in ("dbpedia_14", "yahoo_answers_topics"):
        count = min(2000, len(stream_of([topic], 10_000, 0)))
        for label, spec in (("explore 0.1", {}), ("explore 0", {"explore": 0}), ("explore 1", {"explore": 1})):
            began = time.perf_counter()
            curves = [regret(embed, topic, spec, seed, count) for seed in range(seeds)]
            points = [f"{np.mean([c[n - 1] for c in curves]):6.0f}" for n in marks if n <= count]
            each = (time.perf_counter() - began) / seeds / count
            print(f"{topic:22s} {label:12s} {' '.join(points)}   {1000 * each:.1f} ms a request", flush=True)
        chance = count * (1 - 1 / len(specialists(topic)))
        print(f"{topic:22s} {'at random':12s} {chance:.0f} of {count}")


def measure_cold(embed: Embeddings) -> None:
    """Before anything is rated: of requests that somebody covers, the share that goes to the fallback and to the right
    specialist; of those that nobody does, the share that goes to the fallback."""
    for topic in TOPICS:
        own = {name: each for name, each in specialists(topic).items() if name not in BESIDE}
        code = {name: each for name, each in specialists(topic).items() if name in BESIDE}
        sides = requests(topic, "test"), beside("test")
        for label, names, covered, others in ((topic, own, *sides), (f"code, beside {topic}", code, *reversed(sides))):
            router = Router(
                SwarmSpec(base=BASE, specialists=names, router=RouterSpec(max_specialists=1, explore=0)), embed
            )
            who = [router.decide(row.text, embed([row.text])[0])[0].answering[0] for row in (*covered, *others)]
            fallback = [name == BASE for name in who]
            right = np.mean([name == row.specialist for name, row in zip(who, covered, strict=False)])
            shares = np.mean(fallback[: len(covered)]), np.mean(fallback[len(covered) :])
            print(f"{label:34s} {shares[0]:6.1%} {right:6.1%} {shares[1]:6.1%}", flush=True)


def every_text(splits: Sequence[str]) -> Iterable[str]:
    """All that is embedded."""
    yield from SAMPLES
    for topic in TOPICS:
        for name, spec in specialists(topic).items():
            yield from capability_texts(spec.description, spec.capabilities, name)
        for split in splits:
            yield from (row.text for row in [*requests(topic, split), *beside(split)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, help="file of the embeddings")
    parser.add_argument("--blocks", type=int, help="that embed a text; by default as many as a swarm uses")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--only", choices=("accuracy", "regret", "cold"), help="one of them")
    options = parser.parse_args()
    embed = Embeddings(options.cache, options.blocks)
    embed(list(every_text(("test",) if options.only == "cold" else ("test", "train"))))
    embed.save()
    if options.only in (None, "cold"):
        print("before ratings: covered requests to the fallback and right, others to the fallback")
        measure_cold(embed)
    if options.only in (None, "accuracy"):
        print(f"{'set':22s} {'method':14s} accuracy on the set, and on code and mathematics, after {LABELLED} labels")
        measure_accuracy(embed, options.seeds)
    if options.only in (None, "regret"):
        print("requests that went to a wrong specialist, of the first 100, 250, 500, 1000, 1500, 2000")
        measure_regret(embed, min(3, options.seeds))


if __name__ == "__main__":
    main()
