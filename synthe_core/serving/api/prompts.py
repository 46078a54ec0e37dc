"""The prompt tokens of a request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from synthe_core.data import chat_template as chat
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.data.tool_calls.plain_messages import for_template
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.context import Api
from synthe_core.serving.api.errors import HttpError
from synthe_core.serving.api.messages import Message
from synthe_core.serving.api.turns import to_the_end

MAX_INLINE = 4096  # characters or tokens that are tokenized or decoded in the event loop; more in a thread

PLAIN_STOP = "\nUser:"
"""The stop string of the template PLAIN."""


@dataclass(frozen=True)
class Prompt:
    """text: the prompt, if it was given as text. stop: stop strings of the template."""

    tokens: tuple[int, ...]
    text: str | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """How a prompt is read.

    truncated_to: the number of tokens of its end that are read, -1 for as many as fit; None for all.
    begins:       whether it begins with the model's begin token; None for what is usual: a text does, and messages by a
                  chat template, which writes the token itself, do not.
    answer:       whether the beginning of a reply follows the messages.
    continues:    whether the last message is left open, for the model to continue.
    values:       for the chat template.
    tools:        that the model may call.
    """

    truncated_to: int | None = None
    begins: bool | None = None
    answer: bool = True
    continues: bool = False
    values: Mapping[str, Any] = field(default_factory=dict)
    tools: Sequence[Mapping[str, Any]] = ()


def marked(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of a text in which special tokens are spelled out."""
    for special in (tokenizer.end, tokenizer.begin):
        if special is not None and text == tokenizer.spelling(special):
            return [special]
    return tokenizer.encode_marked(text)


async def encoded(
    api: Api, served: LoadedModel, text: str, *, plain: bool = False, truncated: bool = False, before: str = ""
) -> list[int]:
    """The tokens of a text that follows the text `before`. With `plain`, special tokens in it are read as text. With
    `truncated`, a text that is much too long is read from somewhere in its middle on."""
    tokenizer = served.tokenizer
    most = api.settings.max_prompt * max(1, int(tokenizer.widths.max()))
    if len(text) > most and not truncated:
        raise _too_long(api)  # without counting
    text = text[-2 * most :]
    work: Callable[[str], list[int]] = tokenizer.encode
    if not plain:
        work = partial(tokenizer.encode_after, before) if before else partial(marked, tokenizer)
    tokens = work(text) if len(text) <= MAX_INLINE else await api.tokenize(lambda: work(text))
    return list(tokens)


async def decoded(api: Api, served: LoadedModel, tokens: Sequence[int], *, marked: bool = False) -> str:
    """The text of tokens. With `marked`, special tokens are spelled out."""
    decode = partial(served.tokenizer.decode_marked if marked else served.tokenizer.decode, tokens)
    return decode() if len(tokens) <= MAX_INLINE else await api.tokenize(decode)


async def completion(
    api: Api, served: LoadedModel, prompt: str | Sequence[int], reading: Reading = Reading(), *, continues: bool = False
) -> Prompt:
    """The prompt of a completion. A text starts a document, unless it continues a session."""
    if not isinstance(prompt, str):
        return Prompt(_fitting(api, served, prompt, reading))
    tokens = await encoded(api, served, prompt, truncated=reading.truncated_to is not None)
    if not continues:
        begin = served.tokenizer.begin if reading.begins is not False else None
        tokens = ([] if begin is None else [begin]) + tokens or [served.tokenizer.end]
    fitting = _fitting(api, served, tokens, reading)
    return Prompt(fitting, prompt if reading.truncated_to is None else None)


async def conversation(
    api: Api,
    served: LoadedModel,
    messages: Sequence[Message],
    reading: Reading = Reading(),
    *,
    tails: Sequence[str] | None = None,
) -> Prompt:
    """The messages by the model's own template, or as `chat_template.PLAIN` for a model that has none.

    tails: they are the next ones of a session that ends with one of these texts of the model's own.
    """
    tokenizer = served.tokenizer
    plain = tokenizer.chat_template is None
    turns = [each.turn() for each in messages]
    before = ""
    if tails is None:
        text = await _rendered(api, served, turns, reading)
    else:
        before, text = await _continuation(api, served, turns, tails, reading)
    truncated = reading.truncated_to is not None
    tokens = await encoded(api, served, text, plain=plain, truncated=truncated, before=before)
    begin = tokenizer.begin if (plain if reading.begins is None else reading.begins) else None
    if tails is None and begin is not None and tokens[:1] != [begin]:
        tokens = [begin, *tokens]
    return Prompt(_fitting(api, served, tokens, reading), text, (PLAIN_STOP,) if plain else ())


def tails_of(api: Api, served: LoadedModel, owner: str, session: str | None) -> list[str]:
    """What a saved session's text may end with: if it was not continued here, with any end of texts."""
    tail = api.tails.get((owner, session or ""))
    return [served.tokenizer.spelling(end) for end in served.tokenizer.ends] if tail is None else [tail]


async def _rendered(api: Api, served: LoadedModel, messages: Sequence[dict[str, Any]], reading: Reading) -> str:
    """The text of messages, outside the event loop. A model renders one prompt at a time, so that one whose template
    is slow delays no other."""
    answer = reading.answer and not reading.continues
    if reading.continues:
        *before, last = messages
        messages = [*before, last | {"content": _opened(last["content"])}]
    if served.tokenizer.chat_template is None:
        plain, _ = for_template(served.tokenizer, messages, reading.tools)
        text = chat.render_trusted(chat.PLAIN, plain, answer=answer)
    else:
        text = await _rendered_by_model(api, served, messages, answer, reading)
    if not reading.continues:
        return text
    text, mark, rest = text.rpartition(OPEN)
    return text if rest.startswith(" ") or not mark else text.rstrip()  # as transformers: it trims the message


def _opened(content: str | list[dict[str, str]]) -> str | list[dict[str, str]]:
    """The content of a message that is to be continued, with a mark where it ends."""
    if isinstance(content, str):
        return content + OPEN + " "
    *before, last = content
    return [*before, last | {"text": last["text"] + OPEN + " "}]


async def _rendered_by_model(
    api: Api, served: LoadedModel, messages: Sequence[dict[str, Any]], answer: bool, reading: Reading
) -> str:
    def work() -> str:
        given, tools = for_template(served.tokenizer, messages, reading.tools)
        return chat.render(served.tokenizer, given, answer=answer, variables={"tools": tools, **reading.values})

    async with api.template_locks[served.name]:
        try:
            return await to_the_end(asyncio.to_thread(work))
        except chat.TemplateError as error:  # whose words may be about the messages
            status = 400 if error.refused else 500
            raise HttpError(status, error.message, reason=error.message.partition(":")[0]) from None


MARK = "\N{OGHAM LETTER BEITH}" * 4
"""A placeholder for an answer whose text is not needed."""
OPEN = "\N{OGHAM LETTER LUIS}" * 4
"""What ends a message that is to be continued, where the template would end it."""


async def _continuation(
    api: Api, served: LoadedModel, messages: Sequence[dict[str, Any]], tails: Sequence[str], reading: Reading
) -> tuple[str, str]:
    """What comes after the model's own last message: the rendering of a conversation around them, from there on. What
    the model has begun of it itself, with which its text ends (one of `tails`), is not repeated: its end of turn, a
    stop string. It is the first of the two texts, or a line break."""
    before = [{"role": "user", "content": "."}, {"role": "assistant", "content": MARK}]
    _, separator, rest = (await _rendered(api, served, [*before, *messages], reading)).partition(MARK)
    if not separator:  # the template drops older messages
        return "", await _rendered(api, served, messages, reading)
    sizes = (n for tail in tails for n in range(min(len(tail), len(rest)), 0, -1) if tail.endswith(rest[:n]))
    size = max(sizes, default=0)
    return rest[:size] or "\n", rest[size:]


def _fitting(api: Api, served: LoadedModel, tokens: Sequence[int], reading: Reading) -> tuple[int, ...]:
    size = reading.truncated_to
    if size is not None:
        most = min(api.settings.max_prompt, api.max_length(served) - 1)
        tokens = tokens[max(0, len(tokens) - (most if size < 0 else size)) :]
    if len(tokens) > api.settings.max_prompt:
        raise _too_long(api)
    return tuple(tokens)


def _too_long(api: Api) -> HttpError:
    most = api.settings.max_prompt
    return HttpError(400, f"the prompt has more than {most:,} tokens", code="context_length_exceeded")
