"""Messages as one prompt, by the Jinja template that a model was taught with."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from synthe_core.data.tokenizers import CHAT, Tokenizer
from synthe_core.errors import InputError


def render(
    tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], *, answer: bool = True, template: str | None = None
) -> str:
    """The text of `messages` ({"role", "content"}), special tokens written out; with `answer`, and the beginning of the
    model's reply. `encode_marked` makes tokens of it. InputError for a tokenizer without a template, or a bad one.

    template: to take instead of the tokenizer's own.
    """
    source = tokenizer.chat_template if template is None else template
    if source is None:
        raise InputError("the model has no chat template", f"put its {CHAT} beside its tokenizer.json")
    begin = None if tokenizer.begin is None else tokenizer.spelling(tokenizer.begin)
    names = {"bos_token": begin or "", "eos_token": tokenizer.spelling(tokenizer.end)}
    try:
        return _environment().from_string(source).render(messages=messages, add_generation_prompt=answer, **names)
    except (jinja2.TemplateError, TypeError) as error:
        raise InputError(f"the chat template fails: {' '.join(str(error).split())}", f"mend its {CHAT}") from None


def _environment() -> ImmutableSandboxedEnvironment:
    """What published templates expect to find: whitespace control and three functions."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(value, ensure_ascii=False, indent=indent)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    return environment


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
