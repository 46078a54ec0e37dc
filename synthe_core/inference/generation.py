"""Text from a model, as it is written: prompts in, pieces of text out, with stop strings and sessions."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError
from synthe_core.inference.detokenizer import Detokenizer
from synthe_core.inference.generate import Generation
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.session import Session


class Piece(NamedTuple):
    """Text that row `row` has just written."""

    row: int
    text: str


def write(
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    count: int,
    *,
    sampling: SamplingParams | None = None,
    seed: int = 0,
    stop: Sequence[str] = (),
    session: Session | None = None,
) -> Generator[Piece, None, Session]:
    """Continues each of `prompts` by up to `count` tokens; returns the session, from which a later call goes on.

    A row ends at the tokenizer's end of document or before the first stop string. An empty prompt starts a document.
    With a session of one row and several prompts, each prompt goes on from that one past.
    """
    encoded = [list(tokenizer.encode(prompt)) for prompt in prompts]
    state = None
    if session is None:
        begin = [] if tokenizer.begin is None else [tokenizer.begin]
        encoded = [begin + tokens or [tokenizer.end] for tokens in encoded]
    else:
        session = session.spread(len(prompts))
        state = session.state
        encoded = [[int(token), *tokens] for token, tokens in zip(session.pending, encoded, strict=True)]
    if foreign := [token for tokens in encoded for token in tokens if token >= model.vocab]:
        raise InputError(
            f"the tokenizer gave token {foreign[0]}, and the model knows {model.vocab}",
            "the checkpoint's tokenizer.json is not the one it was trained with",
        )
    rows = [Detokenizer(tokenizer.decoder(), stop) for _ in prompts]
    first = _heal(tokenizer, encoded, rows, model.vocab)
    generation = Generation(model, encoded, sampling=sampling, seed=seed, end=tokenizer.end, state=state, first=first)
    for _ in range(count):
        if not bool(generation.live.any()):
            break
        before = generation.live.tolist()
        tokens = generation.step().tolist()
        for index, row in enumerate(rows):
            if not before[index]:
                continue
            if text := row.push(tokens[index]):
                yield Piece(index, text)
            if row.stopped:
                generation.stop(index)
    for index, row in enumerate(rows):
        if text := row.flush():
            yield Piece(index, text)
    return Session(generation.state, generation.pending)


def _heal(tokenizer: Tokenizer, encoded: list[list[int]], rows: list[Detokenizer], vocab: int) -> Tensor | None:
    """Lets a prompt that ends in a space go on with a word, where the tokenizer writes a word and the space before it
    as one token: the space is taken back, and the first token must begin with it. Gives the tokens allowed first.
    """
    opens = torch.zeros(vocab, dtype=torch.bool)
    opens[[i for i, piece in enumerate(tokenizer.pieces[:vocab]) if piece.startswith(b" ")]] = True
    broken = [len(tokens) > 1 and tokenizer.pieces[tokens[-1]] == b" " for tokens in encoded]
    if not any(broken) or int(opens.sum()) < 2:
        return None
    for tokens, row, is_broken in zip(encoded, rows, broken, strict=True):
        if is_broken:
            tokens.pop()
            row._prefix = " "
    return torch.stack([opens if is_broken else torch.ones_like(opens) for is_broken in broken])
