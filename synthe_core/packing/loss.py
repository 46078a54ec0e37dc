"""What quantisation costs: bits per byte before and after, on the same held-out tokens."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from synthe_core.data.stream import windows
from synthe_core.evaluation.held_out import held_out
from synthe_core.events import Event, Progress
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.packing.manifest import Loss
from synthe_core.storage.checkpoint import Checkpoint, load_weights
from synthe_core.training.validation import Score

LOGITS = 1 << 24  # held at a time


def measure_loss(
    checkpoint: Checkpoint, quantized: Mapping[str, Tensor], sources: Sequence[str], tokens: int
) -> Generator[Event, None, Loss]:
    """Reads held-out text with the checkpoint's weights and with those of `quantized`.

    sources: as a recipe names text; by default what the checkpoint's own recipe keeps for validation. In windows of the
    recipe's length, each from a fresh state, spread evenly over the text: about `tokens` of it.
    """
    recipe = checkpoint.recipe
    context = context_for_recipe(recipe, recipe.runtime.device)
    split = yield from held_out(checkpoint, sources)
    length = min(recipe.data.sequence, split.tokens - 1)
    count = min(max(1, tokens // length), (split.tokens - 1) // length)
    model = checkpoint.model(context.device).eval()
    found: list[float] = []
    for what in ("as it was", "quantised"):
        if found:
            load_weights(model, quantized, Path("the quantised weights"))
        score, done = Score(), 0
        for window in windows(split, length, count, max(1, LOGITS // (length * model.vocab))):
            score.add(model, window, context)
            done += window.targets.numel()
            yield Progress(f"measure {what}", done, count * length, "tokens")
        found.append(score.values()["bits_per_byte"])
    text = ", ".join(sources) if sources else ", ".join(each.source for each in recipe.data.sources) + " (validation)"
    return Loss(before=found[0], after=found[1], tokens=count * length, text=text)
