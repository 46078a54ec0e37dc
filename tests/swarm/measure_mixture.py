"""Measures specialists of running text: bits per byte of each, routed, fused and merged.

python -m tests.swarm.measure_mixture MODEL NAME=RUN=TRAIN.txt=TEST.txt ... [--merged RUN] [--windows 8] [--labelled 5]

Each NAME is a specialist with the adapter of RUN. Of a test text so many windows are taken, evenly spread: the model
reads 64 tokens, which the router sees as the request, and predicts the rest of 512. The router has learned from so many
windows of each training text. routed: the specialist with the largest estimate; fused: all of them, their next-token
distributions mixed in proportion to the estimates; oracle: the best specialist of each window.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from synthe_core.adapters.lora import Adapter
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.interop.load import load_model
from synthe_core.swarm.features import SAMPLES, Standardizer
from synthe_core.swarm.models import BASE
from synthe_core.swarm.router.estimator import Estimator
from synthe_core.swarm.router.router import profiles
from synthe_core.swarm.spec import RouterSpec, SpecialistSpec
from synthe_core.swarm.text_embedding import TextEmbedder

READ, WINDOW = 64, 512


class Text(NamedTuple):
    """A window of a text: its tokens, what the router sees of it, and the bytes that are predicted."""

    tokens: list[int]
    request: str
    bytes: int


def windows(model: LoadedModel, path: Path, count: int) -> list[Text]:
    """So many windows of a text, from its beginning to its end."""
    ids = model.tokenizer.encode(path.read_text(encoding="utf-8"))
    made = []
    for first in np.linspace(0, len(ids) - WINDOW, count).astype(int):
        own = list(ids[first : first + WINDOW])
        scored = len(model.tokenizer.decode(own[READ:]).encode())
        made.append(Text(own, model.tokenizer.decode(own[:READ]), scored))
    return made


@torch.inference_mode()
def log_probabilities(model: LoadedModel, text: Text, adapter: Adapter | None) -> Tensor:
    """float64 [T]: of each token after the first `READ`."""
    with model.activate(adapter):
        tokens = torch.tensor([text.tokens])
        logits = model.logits(model.forward(tokens[:, :-1], None).hidden[:, READ - 1 :])[0]
    return logits.double().log_softmax(-1).gather(-1, tokens[0, READ:, None])[:, 0]


def bits_per_byte(nats: Sequence[Tensor], texts: Sequence[Text]) -> float:
    return -float(sum(each.sum() for each in nats)) / math.log(2) / sum(text.bytes for text in texts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("specialists", nargs="+")
    parser.add_argument("--merged", type=Path)
    parser.add_argument("--windows", type=int, default=8)
    parser.add_argument("--labelled", type=int, default=5)
    options = parser.parse_args()
    model = load_model(options.model, BASE, weights="float32")
    parts = [each.split("=") for each in options.specialists]
    adapters = {name: model.read_adapter(Path(run)) for name, run, _, _ in parts}
    others = {} if options.merged is None else {"merged": model.read_adapter(options.merged)}
    model.adapters = {**adapters, **others}
    with AsyncEngine([model]) as engine:
        embed = TextEmbedder(engine, BASE)
        specs = {name: SpecialistSpec.model_validate({"capabilities": name}) for name in adapters}
        general = embed(SAMPLES)
        estimator = Estimator(profiles(specs, embed), RouterSpec(), Standardizer.of(general), general)
        for name, _, train, _ in parts:
            for text in windows(model, Path(train), options.labelled):
                features = estimator.features(text.request, embed([text.request])[0])
                estimator.learn(text.request, features, {each: float(each == name) for each in adapters})
        tested = {name: windows(model, Path(test), options.windows) for name, _, _, test in parts}
        chosen = {
            name: [estimator.estimates(estimator.features(text.request, embed([text.request])[0])) for text in own]
            for name, own in tested.items()
        }
    print(f"{'':12}" + "".join(f"{name:>14}" for name in [*tested, "all"]))
    report(model, tested, chosen, adapters, others)


def report(
    model: LoadedModel,
    tested: dict[str, list[Text]],
    chosen: dict[str, list[dict[str, tuple[float, float]]]],
    adapters: dict[str, Adapter],
    others: dict[str, Adapter],
) -> None:
    """Prints bits per byte of every way on every text, and how often the router is right."""
    nats: dict[str, dict[str, list[Tensor]]] = {}
    for topic, texts in tested.items():
        for text, estimates in zip(texts, chosen[topic], strict=True):
            own = {name: log_probabilities(model, text, each) for name, each in adapters.items()}
            means = {name: max(1e-3, estimates[name][0]) for name in adapters}
            shares = {name: math.log(mean / sum(means.values())) for name, mean in means.items()}
            ways = {"base": log_probabilities(model, text, None), **own}
            ways |= {name: log_probabilities(model, text, each) for name, each in others.items()}
            ways["routed"] = own[max(means, key=lambda name: means[name])]
            ways["fused"] = torch.stack([own[name] + shares[name] for name in own]).logsumexp(0)
            ways["oracle"] = max(own.values(), key=lambda each: float(each.sum()))
            for way, each in ways.items():
                nats.setdefault(way, {}).setdefault(topic, []).append(each)
    for way, by_topic in nats.items():
        each = [bits_per_byte(by_topic[topic], texts) for topic, texts in tested.items()]
        whole = bits_per_byte(
            [n for own in by_topic.values() for n in own], [text for own in tested.values() for text in own]
        )
        print(f"{way:12}" + "".join(f"{value:14.4f}" for value in [*each, whole]))
    right = [
        max(estimates, key=lambda name: estimates[name][0]) == topic
        for topic, own in chosen.items()
        for estimates in own
    ]
    print(f"router: right on {sum(right)} of {len(right)} windows")


if __name__ == "__main__":
    main()
