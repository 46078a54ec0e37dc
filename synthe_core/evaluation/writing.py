"""Texts that a model writes after prompts, until a stop string, the end of a document, or a limit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from synthe_core import state as states
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.evaluation.prefix_tree import build_tree
from synthe_core.evaluation.reading import Reader
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.generate import Generation
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import ModelState

WORTH_DROPPING = 0.5  # rows that have ended leave the batch when so large a share of it has


class Prompt(NamedTuple):
    """Tokens to go on from, one at least, and the seed of what is drawn for them."""

    tokens: Sequence[int]
    seed: int = 0


def write(
    reader: Reader,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    limit: int,
    stop: Sequence[str],
    sampling: SamplingParams,
) -> Iterator[tuple[int, str]]:
    """Each prompt's number and the text of at most `limit` tokens after it, cut before the first of `stop`.

    What prompts begin with alike is read once. A text does not depend on the prompts beside it.
    """
    if limit < 1:
        yield from ((index, "") for index in range(len(prompts)))
        return
    reader.counts.requested += sum(len(prompt.tokens) for prompt in prompts)
    single = [index for index, prompt in enumerate(prompts) if len(prompt.tokens) == 1]
    longer = [index for index, prompt in enumerate(prompts) if len(prompt.tokens) > 1]
    for first in range(0, len(single), rows := reader.rows(1, limit)):
        yield from _continue(reader, tokenizer, prompts, single[first : first + rows], None, limit, stop, sampling)
    for read in reader.read(build_tree([prompts[index].tokens[:-1] for index in longer]), ends=True):
        if read.state is None:
            continue
        ending = [(row, longer[member]) for row, node in enumerate(read.nodes) for member in node.ends]
        rows = reader.rows(1, max(node.end for node in read.nodes) + limit)
        for first in range(0, len(ending), rows):
            part = ending[first : first + rows]
            taken = torch.tensor([row for row, _ in part], device=reader.device)
            indices = [index for _, index in part]
            state = states.take(read.state, taken)
            yield from _continue(reader, tokenizer, prompts, indices, state, limit, stop, sampling)


def _continue(
    reader: Reader,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    indices: list[int],
    state: ModelState | None,
    limit: int,
    stop: Sequence[str],
    sampling: SamplingParams,
) -> Iterator[tuple[int, str]]:
    """The texts of a batch of prompts of which all but the last token are in `state`."""
    generation = Generation(
        reader.model,
        [prompts[index].tokens[-1:] for index in indices],
        sampling=sampling,
        seed=[prompts[index].seed for index in indices],
        end=tokenizer.end,
        state=state,
    )
    rows = {index: Detokenizer(tokenizer.decoder(), stop) for index in indices}
    texts = dict.fromkeys(indices, "")
    written = 0
    while indices:
        reader.check()
        tokens = generation.step().tolist()
        written += 1
        reader.counts.computed += len(indices)
        live = generation.live.tolist()
        for place, index in enumerate(indices):
            row = rows.get(index)
            if row is None:
                continue
            reader.counts.generated += 1
            texts[index] += row.push(tokens[place])
            if row.stopped or not live[place] or written == limit:
                generation.stop(place)
                del rows[index]
                yield index, texts[index] if row.stopped else texts[index] + row.flush()
        if len(rows) <= (1 - WORTH_DROPPING) * len(indices):
            kept = [place for place, index in enumerate(indices) if index in rows]
            indices = [indices[place] for place in kept]
            if kept:
                generation.keep(kept)
