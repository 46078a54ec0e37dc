"""Messages as one prompt, by the Jinja template that a model was taught with."""

from __future__ import annotations

import atexit
import copy
import itertools
import json
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

from synthe_core.data import template_worker
from synthe_core.data.template_worker import LENGTH, REFUSED, TEXT, read_message, write_message
from synthe_core.data.tokenizer_config import CHAT
from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import InputError, WorkError

MEMORY = 512 << 20
CPU_SECONDS, SECONDS = 2.0, 60.0
"""What rendering once may take; a slow machine is no fault of a template, so the limit of a clock is far higher."""
MAX_TEXT = 64 << 20
"""Characters of a prompt."""
BATCH = 1 << 20
"""Characters of the requests that are rendered in one go."""
MAX_IDLE = 4
"""Processes that wait for the next template."""

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Names under which messages have their reasoning, the most usual first."""

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

Messages = Sequence[Mapping[str, Any]]


class Rendering(NamedTuple):
    """What `render` takes besides the tokenizer."""

    messages: Messages
    answer: bool = True
    tools: Any = None


class Marked(NamedTuple):
    """A text, and pairs of characters in it: what stands between `{% generation %}` and `{% endgeneration %}`."""

    text: str
    spans: list[tuple[int, int]]


class TemplateError(InputError):
    """A chat template fails. refused: by its own `raise_exception`, which is about the messages."""

    def __init__(self, message: str, hint: str | None = None, *, refused: bool = False) -> None:
        super().__init__(message, hint)
        self.refused = refused


def with_template(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer; of a model without a template, a copy that has PLAIN, as such a model is served."""
    if tokenizer.chat_template is None:
        tokenizer = copy.copy(tokenizer)
        tokenizer.chat_template = PLAIN
    return tokenizer


def render(
    tokenizer: Tokenizer, messages: Messages, *, answer: bool = True, variables: Mapping[str, Any] | None = None
) -> str:
    """The text of `messages` ({"role", "content"}), special tokens written out; with `answer`, and the beginning of the
    model's reply. `encode_marked` makes tokens of it. InputError for a tokenizer without a template, TemplateError if
    it fails or takes too much time or memory: it runs in a process of its own.

    The content of a message is a text or a list of parts ({"type": "text", "text": ...}); a template that reads only
    one of the two gets that one. variables: further ones for the template.
    """
    return WORKERS.render(_template_of(tokenizer), _values(tokenizer, messages, answer, variables))


def render_each(tokenizer: Tokenizer, renderings: Sequence[Rendering]) -> list[str | InputError]:
    """`render` of each, many at a time: faster than one by one. An InputError stands where one fails."""
    each = [_values(tokenizer, one.messages, one.answer, {"tools": one.tools}) for one in renderings]
    return WORKERS.render_each(_template_of(tokenizer), each)


def render_each_marked(tokenizer: Tokenizer, renderings: Sequence[Rendering]) -> list[Marked | InputError]:
    """The same, and what the template marks as the model's; nothing for a template without marks."""
    source = _template_of(tokenizer)
    if "generation" not in source:
        texts = render_each(tokenizer, renderings)
        return [text if isinstance(text, InputError) else Marked(text, []) for text in texts]
    mark = f"\ue000{secrets.token_hex(8)}"  # no message has it
    marks = dict.fromkeys(template_worker.MARKS, mark)
    each = [_values(tokenizer, one.messages, one.answer, {"tools": one.tools}) | marks for one in renderings]
    return [
        text if isinstance(text, InputError) else _marked(text.split(mark))
        for text in WORKERS.render_each(source, each)
    ]


def _marked(parts: Sequence[str]) -> Marked:
    places = [0, *itertools.accumulate(map(len, parts))]
    return Marked("".join(parts), [(places[i], places[i + 1]) for i in range(1, len(parts) - 1, 2)])


def _template_of(tokenizer: Tokenizer) -> str:
    if tokenizer.chat_template is None:
        raise InputError("the model has no chat template", f"put its {CHAT} beside its tokenizer.json")
    return tokenizer.chat_template


def _values(
    tokenizer: Tokenizer, messages: Messages, answer: bool, variables: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the template reads."""
    values = {"tools": None, "documents": None, "bos_token": "", **tokenizer.named_tokens, **(variables or {})}
    return values | {"messages": [_complete(each) for each in messages], "add_generation_prompt": answer}


def _complete(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """The message as transformers gives it to templates: without keys that are null, and the reasoning under each of
    its two names."""
    message = {key: value for key, value in message.items() if value is not None}
    reasoning = next((message[name] for name in REASONING if name in message), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def render_trusted(source: str, messages: Messages, *, answer: bool = True) -> str:
    """The same by a template of our own, in this process."""
    return template_worker.render(source, {"messages": messages, "add_generation_prompt": answer}, MAX_TEXT)


class Worker:
    """A process that renders templates one after another; see `template_worker`."""

    def __init__(self, memory: int, cpu_seconds: float, seconds: float) -> None:
        self._limits = (memory, cpu_seconds, seconds)
        command = [sys.executable, "-P", template_worker.__file__, *map(str, self._limits)]
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the program, not for it
            )
        except OSError as error:
            raise WorkError(f"the process that renders chat templates does not start: {error.strerror}") from error

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, message: bytes) -> bytes:
        """The answer. Raises TemplateError if the process ends instead."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            write_message(self._process.stdin, message)  # type: ignore[arg-type]
            answer = read_message(self._process.stdout)  # type: ignore[arg-type]
        except OSError:
            answer = None
        if answer is None:
            self.kill()
            raise TemplateError(f"the chat template fails: {self._end()}", f"mend its {CHAT}")
        return answer

    def _end(self) -> str:
        """Why the process has ended."""
        _, cpu_seconds, seconds = self._limits
        code = self._process.returncode
        if code == -getattr(signal, "SIGPROF", 0):
            return f"it takes more than {cpu_seconds:g} s"
        return f"it takes more than {seconds:g} s" if code == 1 else f"its process ends with status {code}"

    def close(self) -> None:
        """Ends a process that has nothing to do."""
        with suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        self.kill()

    def kill(self) -> None:
        """Ends it at once, unless it has ended by itself."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with suppress(OSError):
                if stream is not None:
                    stream.close()


class Workers:
    """The processes that wait for the next template; each is started when it is first needed."""

    def __init__(self, memory: int = MEMORY, cpu_seconds: float = CPU_SECONDS, seconds: float = SECONDS) -> None:
        self._limits = (memory, cpu_seconds, seconds)
        self._idle: list[Worker] = []
        self._lock = threading.Lock()

    def render(self, source: str, variables: Mapping[str, Any], limit: int = MAX_TEXT) -> str:
        """The text of a template. TemplateError if it fails."""
        text = self._read(self._ask(source, [_json(variables)], limit)[0])
        if isinstance(text, InputError):
            raise text
        return text

    def render_each(
        self, source: str, each: Sequence[Mapping[str, Any]], limit: int = MAX_TEXT
    ) -> list[str | InputError]:
        """The texts of a template, in few messages; an InputError where it fails.

        The variables with which it fails for want of time or memory are tried again alone: that is what a text may
        take, whatever stands beside it.
        """
        messages = [_json_or_error(variables) for variables in each]
        results = [message if isinstance(message, InputError) else "" for message in messages]
        for batch in _batches([(i, each) for i, each in enumerate(messages) if isinstance(each, bytes)]):
            try:
                texts = [self._read(one) for one in self._ask(source, [message for _, message in batch], limit)]
            except TemplateError as ended:
                texts = [ended] * len(batch)
            for (number, message), text in zip(batch, texts, strict=True):
                failed = isinstance(text, TemplateError) and not text.refused and len(batch) > 1
                results[number] = self._alone(source, message, limit) if failed else text
        return results

    def _alone(self, source: str, variables: bytes, limit: int) -> str | InputError:
        try:
            return self._read(self._ask(source, [variables], limit)[0])
        except TemplateError as error:
            return error

    def _ask(self, source: str, each: Sequence[bytes], limit: int) -> list[bytes]:
        """What a process answers for each. Raises TemplateError if it ends instead."""
        head = json.dumps({"source": source, "limit": limit})[:-1].encode()
        worker = self._take()
        try:
            answer = worker.ask(head + b', "each": [' + b",".join(each) + b"]}")
        except BaseException:
            worker.kill()  # an interrupt leaves an answer in the pipe
            raise
        self._put(worker)
        answers, at = [], 0
        while at < len(answer):
            begin = at + LENGTH.size
            at = begin + LENGTH.unpack_from(answer, at)[0]
            answers.append(answer[begin:at])
        return answers

    def _read(self, answer: bytes) -> str | TemplateError:
        kind, words = answer[:1], answer[1:].decode("utf-8")
        if kind == TEXT:
            return words
        refused = kind == REFUSED
        verb = "refuses these messages" if refused else "fails"
        hint = None if refused else f"mend its {CHAT}"
        return TemplateError(f"the chat template {verb}: {words}", hint, refused=refused)

    def close(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for worker in idle:
            worker.close()

    def _take(self) -> Worker:
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.alive:
                    return worker
        return Worker(*self._limits)

    def _put(self, worker: Worker) -> None:
        with self._lock:
            if len(self._idle) < MAX_IDLE:
                self._idle.append(worker)
                return
        worker.close()


def _json(variables: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(variables, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"the messages are no JSON: {error}") from None


def _json_or_error(variables: Mapping[str, Any]) -> bytes | InputError:
    try:
        return _json(variables)
    except InputError as error:
        return error


def _batches(messages: Sequence[tuple[int, bytes]]) -> Iterator[list[tuple[int, bytes]]]:
    """The messages, as many at a time as have BATCH bytes."""
    batch: list[tuple[int, bytes]] = []
    size = 0
    for number, message in messages:
        batch.append((number, message))
        size += len(message)
        if size >= BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


WORKERS = Workers()
atexit.register(WORKERS.close)
