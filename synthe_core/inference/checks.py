"""What cannot be asked of a model, said before it is begun; and what went wrong, in one line."""

from __future__ import annotations

from collections.abc import Sequence

from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.request import Request
from synthe_core.inference.served import Served


def in_a_line(error: Exception) -> str:
    """An error as one line, for whoever asked."""
    if isinstance(error, SyntheError):
        return error.message
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check(request: Request, served: Served) -> None:
    if request.prompt:
        check_tokens(request.prompt, served)
    elif request.session is None:
        raise InputError("nothing to read: the prompt is empty", "give at least one token, or a saved session")
    if request.count < 0:
        raise InputError(f"cannot write {request.count} tokens", "ask for none or more")
    if request.logprobs is not None and not 0 <= request.logprobs <= served.vocab:
        raise InputError(f"cannot tell of {request.logprobs} tokens", f"the model knows {served.vocab}")
    for token in request.sampling.logit_bias:
        if not 0 <= token < served.vocab:
            raise InputError(f"the logit bias is of token {token}, and the model knows {served.vocab}")
    if served.limit is not None and len(request.prompt) + request.count > served.limit:
        raise InputError(
            f"{len(request.prompt)} tokens and {request.count} to come are more than the model's {served.limit}",
            "shorten the prompt, or ask for less",
        )


def check_tokens(tokens: Sequence[int], served: Served) -> None:
    if not tokens:
        raise InputError("nothing to read: the text is empty", "give at least one token")
    if served.limit is not None and len(tokens) > served.limit:
        raise InputError(f"{len(tokens)} tokens are more than the model's {served.limit}", "shorten the text")
    if min(tokens) < 0 or max(tokens) >= served.vocab:
        foreign = next(token for token in tokens if not 0 <= token < served.vocab)
        raise InputError(f"there is no token {foreign}", f"the model knows {served.vocab}")
