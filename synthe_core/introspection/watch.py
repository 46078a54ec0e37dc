"""Watching a model read a text in small pieces, each from the state after the one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.introspection.observe import module_at
from synthe_core.introspection.report import block_range, encode, groups, token_text
from synthe_core.introspection.series import meaning_of, name_of, rows_of
from synthe_core.layers.trace import Trace
from synthe_core.model.language_model import LanguageModel, ModelState


class Moment(NamedTuple):
    """A piece of the text: the index of its first token, of `total`; the tokens as text; the surprise of each in bits;
    and by (path, learner, name) the mean over rows of every figure, nan if a learner did not run."""

    first: int
    total: int
    pieces: list[str]
    bits: np.ndarray
    figures: dict[tuple[str, str, str], np.ndarray]


@torch.no_grad()
def watch(
    model: LanguageModel,
    tokenizer: Tokenizer,
    text: str,
    *,
    layers: str | None = None,
    what: tuple[str, ...] = (),
    piece: int = 8,
) -> Iterator[Moment]:
    """Reads `text` and yields a Moment for every `piece` tokens."""
    blocks, selected = block_range(layers, model.spec.blocks), groups(what)
    ids = encode(tokenizer, text, model.vocab, longest=None)
    state: ModelState | None = None
    expected: torch.Tensor | None = None  # log-probabilities of the next token
    for start in range(0, len(ids), piece):
        tokens = torch.tensor([ids[start : start + piece]], device=next(model.parameters()).device)
        trace = Trace()
        logits, state = model(tokens, state, trace=trace)
        log_p = logits[0].float().log_softmax(-1)
        predicted = log_p[:-1] if expected is None else torch.cat([expected, log_p[:-1]])
        surprise = predicted.gather(-1, tokens[0, len(tokens[0]) - len(predicted) :, None])[:, 0] / -np.log(2)
        bits = np.full(tokens.shape[1], np.nan)
        bits[len(bits) - len(surprise) :] = surprise.cpu().numpy()
        expected = log_p[-1:]
        figures: dict[tuple[str, str, str], np.ndarray] = {}
        for record in trace.records:
            module = module_at(model, record.path)
            emission = meaning_of(module, record.name)
            head, _, rest = record.path.partition(".")
            if head == "blocks" and int(rest.partition(".")[0]) not in blocks:
                continue
            if emission is None or emission.group not in selected or "T" not in emission.axes.split():
                continue
            key = (record.path, name_of(module), record.name)
            values = figures.setdefault(key, np.full(tokens.shape[1], np.nan))
            if record.value.numel():
                at = slice(None) if record.at is None else record.at[0].cpu().numpy()
                values[at] = rows_of(record.value, emission).mean(0)
        yield Moment(start, len(ids), [token_text(tokenizer, int(i)) for i in tokens[0]], bits, figures)
