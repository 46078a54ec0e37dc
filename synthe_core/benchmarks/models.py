"""Whole models: training steps against a baseline of equal parameters, decoding after short and long contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from synthe_core.benchmarks.paired import paired
from synthe_core.events import Event, Measurement, Progress
from synthe_core.hardware.placement import choose_precision
from synthe_core.hardware.probe import probe
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.layers import build, parse
from synthe_core.layers.learner import Pass, apply_buffer_updates
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.prefill import prefill
from synthe_core.profiling.peak_memory import peak_bytes
from synthe_core.recipe.accounting import vocabulary_of
from synthe_core.recipe.schema import Recipe
from synthe_core.training.optimizer import Optimizer


def training(
    recipes: dict[str, Recipe], times: tuple[int, ...], tokens: int, turns: int, device: str
) -> Iterator[Event]:
    """Training steps (forward, backward, clip, optimizer) of several recipes on the same tokens, paired.

    `tokens` a step, in sequences of each of `times`. Ratios are (its time / the first recipe's).
    """
    for time in times:
        yield Progress(f"training {' against '.join(recipes)} at T={time}", 0)
        batch = max(1, tokens // time)
        steps = {name: _training_step(recipe, batch, time, device) for name, recipe in recipes.items()}
        result = paired(steps, turns, device)
        for name, timing in result.timings.items():
            figures = {"tokens_per_s": batch * time / timing.median, "ratio": result.ratios[name]}
            yield Measurement(f"training B={batch} T={time}", {"candidate": name, **figures})


def decoding(recipes: dict[str, Recipe], contexts: tuple[int, ...], turns: int, device: str) -> Iterator[Event]:
    """Milliseconds a token after each of `contexts` tokens, batch 1. Ratios are against the first context."""
    for name, recipe in recipes.items():
        torch.manual_seed(0)
        model = _model(recipe, device).eval()
        states = {}
        for context in contexts:
            yield Progress(f"{name}: reading {context} tokens", 0)
            states[context] = prefill(model, torch.randint(0, model.vocab, (1, context), device=device))[1]
        token = torch.zeros(1, 1, dtype=torch.int64, device=device)

        def decode(state: object, model: LanguageModel = model, token: torch.Tensor = token) -> None:
            with torch.no_grad():
                for _ in range(16):
                    _, state = model.next_logits(token, state)  # type: ignore[arg-type]

        result = paired({str(c): (lambda s=s: decode(s)) for c, s in states.items()}, turns, device)  # type: ignore[misc]
        for label, timing in result.timings.items():
            figures = {"ms_per_token": timing.median / 16 * 1e3, "ratio": result.ratios[label]}
            yield Measurement(f"decoding after {label} tokens", {"candidate": name, **figures})


def published_shapes(recipes: dict[str, Recipe], turns: int, device: str) -> Iterator[Event]:
    """The shapes that the published SYNTHE code was measured at: its delta layer at B=4, T=1024; 60M at B=4, T=256."""
    for precision in ("float32", "bfloat16"):  # the small case first: a peak is that of the whole process
        step = _layer_step(device, precision)
        yield from _alone(f"delta layer, width 512, B=4 T=1024, {precision}", step, 4096, turns, device)
    for name, recipe in recipes.items():
        step = _training_step(recipe, 4, 256, device)
        yield from _alone(f"training step of {name}, B=4 T=256", step, 1024, turns, device)
        del step


def _alone(case: str, step: Callable[[], object], tokens: int, turns: int, device: str) -> Iterator[Event]:
    yield Progress(case, 0)
    peak = peak_bytes(step, device)
    timing = paired({"synthe": step}, turns, device).timings["synthe"]
    values: dict[str, float | str | None] = {"candidate": "synthe", "tokens_per_s": tokens / timing.median}
    yield Measurement(case, values | {"peak_gb": None if peak is None else peak / 1e9})


def _model(recipe: Recipe, device: str) -> LanguageModel:
    return LanguageModel(recipe.model, vocabulary_of(recipe)).to(device)


def _training_step(recipe: Recipe, batch: int, time: int, device: str) -> Callable[[], object]:
    torch.manual_seed(0)
    model = _model(recipe, device)
    optimizer = Optimizer(model, recipe.train)
    precision = choose_precision(recipe.runtime.precision, device, probe()).value
    context = replace(context_for_recipe(recipe, torch.device(device)), precision=precision)
    tokens = torch.randint(0, model.vocab, (batch, time + 1), device=device)

    def step() -> None:
        with context.activate():
            loss, _ = model.loss(tokens[:, :-1], tokens[:, 1:])
        loss.objective.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step(1e-3)
        apply_buffer_updates(loss.buffer_updates)
        optimizer.zero_grad()

    return step


def _layer_step(device: str, precision: str) -> Callable[[], object]:
    torch.manual_seed(0)
    layer = build(parse({"type": "delta", "heads": 8}), 512).to(device)
    x = torch.randn(4, 1024, 512, device=device, requires_grad=True)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16"):
            y, _ = layer(x, None, Pass.over(x))
        y.sum().backward()
        layer.zero_grad()

    return step
