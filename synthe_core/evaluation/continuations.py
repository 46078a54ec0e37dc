"""Pairs of context and continuation as tokens: which tokens of the whole text are the continuation's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from synthe_core.errors import InputError
from synthe_core.evaluation.prefix_tree import common_length
from synthe_core.evaluation.scoring import Continuation

Pair = tuple[str, str]
Encode = Callable[[list[str]], list[list[int]]]
Prefix = Callable[[list[int]], list[int]]

METHOD = "split where tokens differ"
"""A part of the key of stored answers: answers that were split in another way are not used again."""


def split_pairs(pairs: Sequence[Pair], encode: Encode, prefixed: Prefix, first_token: int) -> list[Continuation]:
    """The tokens of context and continuation together, split where they begin to differ from the context's own.

    encode: the tokens of texts. prefixed: tokens with the prefix of contexts. first_token: what an empty context is.

    As in the harness, spaces at the context's end belong to the continuation. The harness splits at the *number* of
    the context's tokens, which is the same place unless the tokenizer merges the end of the context with the
    continuation: `a` and `b` to `ab`. There the harness leaves out tokens of the continuation, all of them if there is
    one; here the merged token is the continuation's. A continuation that adds no tokens is returned without any.
    """
    texts: dict[str, int] = {}
    places = []
    for context, rest in pairs:
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, rest = context[:-spaces], context[-spaces:] + rest
        whole = texts.setdefault(context + rest, len(texts))
        places.append((texts.setdefault(context, len(texts)) if context else None, whole))
    tokens = encode(list(texts))
    continuations = []
    for context_index, whole in places:
        if context_index is None:
            continuations.append(Continuation([first_token], tokens[whole]))
            continue
        together = prefixed(tokens[whole])
        place = common_length(prefixed(tokens[context_index]), together)
        continuations.append(Continuation(together[:place] or [first_token], together[place:]))
    return continuations


def no_tokens(pair: Pair, request: Any = None) -> InputError:
    """The error of a continuation that adds no tokens to its context, with the question's place in the task."""
    context, rest = pair
    where = ""
    if request is not None and request.task_name is not None:
        where = f"{request.task_name}, document {request.doc_id}, choice {request.idx}: "
    if not rest:
        return InputError(
            f"{where}the continuation is empty", "its log-likelihood would be 0, which beats every other choice"
        )
    return InputError(
        f"{where}the tokenizer leaves no token of the continuation {rest[:40]!r} after {context[-40:]!r}",
        "its log-likelihood would be 0, which beats every other choice",
    )
