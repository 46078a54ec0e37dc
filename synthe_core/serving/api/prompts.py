"""From what was asked to the tokens that the engine reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.bodies import Message
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.errors import Refusal

AT_ONCE = 4096  # characters that are tokenised where they are; more in a thread

PLAIN = """\
{% for message in messages %}\
{% if message.role == "system" %}{{ message.content }}

{% else %}{{ "User" if message.role == "user" else "Assistant" }}:\
{{ "" if message.content[:1] == " " else " " }}{{ message.content }}
{% endif %}\
{% endfor %}\
{% if add_generation_prompt %}Assistant:{% endif %}"""
"""How a model is asked that was taught no template of its own. Its answers, which begin with a space, stay as they are,
so that their states are known when they come again."""
PLAIN_STOP = "\nUser:"
"""Where its answer ends at the latest."""


@dataclass(frozen=True)
class Prompt:
    """text: what was asked, where it was a text. stop: before what the answer ends, whatever else is asked."""

    tokens: tuple[int, ...]
    text: str | None = None
    stop: tuple[str, ...] = ()


def marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of `text`, special ones written out; a tokenizer of bytes knows its special tokens alone."""
    for special in (tokenizer.end, tokenizer.begin):
        if special is not None and text == tokenizer.spelling(special):
            return [special]
    return tokenizer.encode_marked(text)


async def encoded(api: Api, served: LoadedModel, text: str, *, plain: bool = False) -> list[int]:
    """The tokens of a text; `plain` reads special tokens in it as text."""
    tokenizer = served.tokenizer
    if len(text) > api.settings.max_prompt * max(1, int(tokenizer.widths.max())):
        raise _too_long(api)  # without counting
    work = tokenizer.encode if plain else lambda whole: marked(tokenizer, whole)
    tokens = work(text) if len(text) <= AT_ONCE else await api.in_thread(lambda: work(text))
    return list(tokens)


async def completion(api: Api, served: LoadedModel, prompt: str | Sequence[int], *, goes_on: bool = False) -> Prompt:
    """The prompt of a completion: a text begins a document, unless it goes on from a session."""
    if not isinstance(prompt, str):
        return Prompt(_fitting(api, prompt))
    tokens = await encoded(api, served, prompt)
    if not goes_on:
        begin = served.tokenizer.begin
        tokens = ([] if begin is None else [begin]) + tokens or [served.tokenizer.end]
    return Prompt(_fitting(api, tokens), prompt)


async def conversation(
    api: Api, served: LoadedModel, messages: Sequence[Message], *, session: str | None = None, answer: bool = True
) -> Prompt:
    """The messages by the model's own template, or as `PLAIN` for a model that has none.

    session: they are the next ones of this session, whose last message was the model's own.
    """
    tokenizer = served.tokenizer
    plain = tokenizer.chat_template is None
    asked = [{"role": _role(each), "content": each.text} for each in messages]
    if session is None:
        text = _rendered(tokenizer, asked, answer)
    else:
        text = _continuation(tokenizer, asked, api.tails.get(session, tokenizer.spelling(tokenizer.end)))
    tokens = await encoded(api, served, text, plain=plain)
    begin = tokenizer.begin
    if session is None and begin is not None and tokens[:1] != [begin]:
        tokens = [begin, *tokens]
    return Prompt(_fitting(api, tokens), text, (PLAIN_STOP,) if plain else ())


def _role(message: Message) -> str:
    return "system" if message.role == "developer" else message.role


def _rendered(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], answer: bool = True) -> str:
    return chat.render(tokenizer, messages, answer=answer, template=None if tokenizer.chat_template else PLAIN)


MARK = "\N{OGHAM LETTER BEITH}" * 4
"""Stands for an answer whose text does not matter."""


def _continuation(tokenizer: Tokenizer, messages: Sequence[dict[str, str]], tail: str) -> str:
    """What comes after the model's own last message: the rendering of a conversation around them, from there on. What
    the model has begun of it itself, with which its `tail` ends, is not repeated: its end of turn, a stop string."""
    before = [{"role": "user", "content": "."}, {"role": "assistant", "content": MARK}]
    _, found, rest = _rendered(tokenizer, [*before, *messages]).partition(MARK)
    if not found:  # a template that leaves older messages out
        return _rendered(tokenizer, messages)
    shared = next((n for n in range(min(len(tail), len(rest)), 0, -1) if tail.endswith(rest[:n])), 0)
    return rest[shared:]


def _fitting(api: Api, tokens: Sequence[int]) -> tuple[int, ...]:
    if len(tokens) > api.settings.max_prompt:
        raise _too_long(api)
    return tuple(tokens)


def _too_long(api: Api) -> Refusal:
    most = api.settings.max_prompt
    return Refusal(400, f"the prompt has more than {most:,} tokens", code="context_length_exceeded")
