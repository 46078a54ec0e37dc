"""Checks of a request before it starts, and exceptions as one line of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from synthe_core.errors import InputError, SyntheError
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import ContextLengthExceeded, Request

MAX_LOGIT_BIAS = 3e38  # float32


def one_line(error: Exception) -> str:
    """The message of an error for whoever made the request."""
    if isinstance(error, SyntheError):
        return error.message
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def check_request(request: Request, model: LoadedModel, has_session: bool) -> None:
    """Raises InputError for what the model cannot do."""
    if request.prompt_token_ids:
        check_tokens(request.prompt_token_ids, model)
    elif not has_session:
        raise empty_prompt()
    if request.max_tokens < 0:
        raise InputError(f"cannot generate {request.max_tokens} tokens", "ask for none or more")
    if request.logprobs is not None and not 0 <= request.logprobs <= model.vocab:
        raise InputError(
            f"cannot report {request.logprobs} logprobs a token", f"the vocabulary has {model.vocab} tokens"
        )
    for token, bias in request.sampling.logit_bias.items():
        if not 0 <= token < model.vocab:
            raise InputError(f"logit_bias: no token {token}", f"the vocabulary has {model.vocab} tokens")
        if math.isnan(bias) or bias > MAX_LOGIT_BIAS:
            raise InputError(f"logit_bias: {bias} is not a finite number", "values from -100 to 100 do")
    for token in request.stop_token_ids:
        if not 0 <= token < model.vocab:
            raise InputError(f"stop_token_ids: no token {token}", f"the vocabulary has {model.vocab} tokens")
    if request.min_tokens > request.max_tokens:
        raise InputError(f"min_tokens: {request.min_tokens} is more than the {request.max_tokens} of max_tokens")
    length = len(request.prompt_token_ids) + request.max_tokens
    if model.max_length is not None and length > model.max_length:
        raise ContextLengthExceeded(
            f"{len(request.prompt_token_ids)} tokens and {request.max_tokens} to come are more than the model's "
            f"{model.max_length}",
            "shorten the prompt, or ask for less",
        )


def check_tokens(tokens: Sequence[int], model: LoadedModel) -> None:
    """Raises InputError for tokens that the model cannot read."""
    if not tokens:
        raise InputError("nothing to read: the text is empty", "give at least one token")
    if model.max_length is not None and len(tokens) > model.max_length:
        raise ContextLengthExceeded(
            f"{len(tokens)} tokens are more than the model's {model.max_length}", "shorten the text"
        )
    if min(tokens) < 0 or max(tokens) >= model.vocab:
        foreign = next(token for token in tokens if not 0 <= token < model.vocab)
        raise InputError(f"there is no token {foreign}", f"the vocabulary has {model.vocab} tokens")


def empty_prompt() -> InputError:
    return InputError("nothing to read: the prompt is empty", "give at least one token, or a saved session")
