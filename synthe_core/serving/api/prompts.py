"""The prompt tokens of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.bodies import Message
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.errors import HttpError

MAX_INLINE = 4096  # characters or tokens that are tokenized or decoded in the event loop; more in a thread

PLAIN = """\
{% for message in messages %}\
{% if message.role == "system" %}{{ message.content }}

{% else %}{{ "User" if message.role == "user" else "Assistant" }}:\
{{ "" if message.content[:1] == " " else " " }}{{ message.content }}
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}Assistant:{% endif %}"""
"""The template for a model without one. Answers begin with a space and are not changed, so that the cached state of an
earlier turn matches."""
PLAIN_STOP = "\nUser:"
"""The stop string of that template."""


@dataclass(frozen=True)
class Prompt:
    """text: the prompt, if it was given as text. stop: stop strings of the template."""

    tokens: tuple[int, ...]
    text: str | None = None
    stop: tuple[str, ...] = ()


def marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text in which special tokens are spelled out."""
    for special in (tokenizer.end, tokenizer.begin):
        if special is not None and text == tokenizer.spelling(special):
            return [special]
    return tokenizer.encode_marked(text)


async def encoded(api: Api, served: LoadedModel, text: str, *, plain: bool = False) -> list[int]:
    """The tokens of a text. With `plain`, special tokens in it are read as text."""
    tokenizer = served.tokenizer
    if len(text) > api.settings.max_prompt * max(1, int(tokenizer.widths.max())):
        raise _too_long(api)  # without counting
    work = tokenizer.encode if plain else lambda whole: marked(tokenizer, whole)
    tokens = work(text) if len(text) <= MAX_INLINE else await api.in_thread(lambda: work(text))
    return list(tokens)


async def decoded(api: Api, served: LoadedModel, tokens: Sequence[int], *, marked: bool = False) -> str:
    """The text of tokens. With `marked`, special tokens are spelled out."""
    decode = partial(served.tokenizer.decode_marked if marked else served.tokenizer.decode, tokens)
    return decode() if len(tokens) <= MAX_INLINE else await api.in_thread(decode)


async def completion(api: Api, served: LoadedModel, prompt: str | Sequence[int], *, continues: bool = False) -> Prompt:
    """The prompt of a completion. A text starts a document, unless it continues a session."""
    if not isinstance(prompt, str):
        return Prompt(_fitting(api, prompt))
    tokens = await encoded(api, served, prompt)
    if not continues:
        begin = served.tokenizer.begin
        tokens = ([] if begin is None else [begin]) + tokens or [served.tokenizer.end]
    return Prompt(_fitting(api, tokens), prompt)


async def conversation(
    api: Api,
    served: LoadedModel,
    messages: Sequence[Message],
    *,
    tails: Sequence[str] | None = None,
    answer: bool = True,
) -> Prompt:
    """The messages by the model's own template, or as `PLAIN` for a model that has none.

    tails: they are the next ones of a session that ends with one of these texts of the model's own.
    """
    tokenizer = served.tokenizer
    plain = tokenizer.chat_template is None
    turns = [{"role": _role(each), "content": each.text} for each in messages]
    if tails is None:
        text = await _rendered(api, served, turns, answer)
    else:
        text = await _continuation(api, served, turns, tails)
    tokens = await encoded(api, served, text, plain=plain)
    begin = tokenizer.begin
    if tails is None and begin is not None and tokens[:1] != [begin]:
        tokens = [begin, *tokens]
    return Prompt(_fitting(api, tokens), text, (PLAIN_STOP,) if plain else ())


def tails_of(api: Api, served: LoadedModel, owner: str, session: str | None) -> list[str]:
    """What a saved session's text may end with: if it was not continued here, with any end of texts."""
    tail = api.tails.get((owner, session or ""))
    return [served.tokenizer.spelling(end) for end in served.tokenizer.ends] if tail is None else [tail]


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


async def _rendered(api: Api, served: LoadedModel, messages: Sequence[dict[str, str]], answer: bool = True) -> str:
    """The text of messages, outside the event loop. A model renders one prompt at a time, so that one whose template
    is slow delays no other."""
    if served.tokenizer.chat_template is None:
        return chat.render_trusted(PLAIN, messages, answer=answer)
    async with api.template_locks[served.name]:
        try:
            return await asyncio.to_thread(chat.render, served.tokenizer, messages, answer=answer)
        except chat.TemplateError as error:
            raise HttpError(400 if error.refused else 500, error.message) from None


MARK = "\N{OGHAM LETTER BEITH}" * 4
"""A placeholder for an answer whose text is not needed."""


async def _continuation(api: Api, served: LoadedModel, messages: Sequence[dict[str, str]], tails: Sequence[str]) -> str:
    """What comes after the model's own last message: the rendering of a conversation around them, from there on. What
    the model has begun of it itself, with which its text ends (one of `tails`), is not repeated: its end of turn, a
    stop string."""
    before = [{"role": "user", "content": "."}, {"role": "assistant", "content": MARK}]
    _, separator, rest = (await _rendered(api, served, [*before, *messages])).partition(MARK)
    if not separator:  # the template drops older messages
        return await _rendered(api, served, messages)
    sizes = (n for tail in tails for n in range(min(len(tail), len(rest)), 0, -1) if tail.endswith(rest[:n]))
    return rest[max(sizes, default=0) :]


def _fitting(api: Api, tokens: Sequence[int]) -> tuple[int, ...]:
    if len(tokens) > api.settings.max_prompt:
        raise _too_long(api)
    return tuple(tokens)


def _too_long(api: Api) -> HttpError:
    most = api.settings.max_prompt
    return HttpError(400, f"the prompt has more than {most:,} tokens", code="context_length_exceeded")
