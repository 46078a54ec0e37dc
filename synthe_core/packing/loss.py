"""The loss from quantisation: bits per byte before and after, on the same held-out tokens."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from synthe_core.data.stream import windows
from synthe_core.evaluation.bits_per_byte import TextScore, evaluate_bits_per_byte
from synthe_core.evaluation.held_out import held_out
from synthe_core.events import Event, Progress
from synthe_core.hardware.recipe_context import context_for_recipe
from synthe_core.model.head_chunks import places_per_chunk
from synthe_core.packing.manifest import Loss
from synthe_core.storage.checkpoint import Checkpoint, load_weights


def measure_loss(
    checkpoint: Checkpoint, quantized: Mapping[str, Tensor], sources: Sequence[str], tokens: int
) -> Generator[Event, None, Loss]:
    """Reads held-out text with the checkpoint's weights and with those of `quantized`.

    sources: as in a recipe; by default the validation text of the checkpoint's own recipe. About `tokens` tokens are
    read, in windows of the recipe's length, each from a fresh state, spread evenly over the text.
    """
    recipe = checkpoint.recipe
    context = context_for_recipe(recipe, recipe.runtime.device)
    split = yield from held_out(checkpoint.recipe.data, checkpoint.tokenizer(), sources)
    length = min(recipe.data.sequence, split.tokens - 1)
    count = min(max(1, tokens // length), (split.tokens - 1) // length)
    model = checkpoint.model(context.device).eval()
    bits: list[float] = []
    for weights in ("original", "quantised"):
        if bits:
            load_weights(model, quantized, Path("the quantised weights"))
        score, text = TextScore(), windows(split, length, count, places_per_chunk(model, length))
        for score in evaluate_bits_per_byte(model, text, context):
            yield Progress(f"measure {weights}", score.tokens, count * length, "tokens")
        bits.append(score.bits_per_byte)
    text_name = (
        ", ".join(sources) if sources else ", ".join(each.source for each in recipe.data.sources) + " (validation)"
    )
    return Loss(before=bits[0], after=bits[1], tokens=count * length, text=text_name)
