"""A process that renders chat templates, which are code of strangers: a sandbox, and limits of time, memory and length.

It is a script of its own that imports only Jinja. Each message on its pipes is a length and as many bytes. A request
has a template and the variables of each text; its answer has a message a text, whose first byte says what it
is.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import struct
import sys
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, BinaryIO, NoReturn

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

LENGTH = struct.Struct("<Q")
TEXT, REFUSED, FAILED = b"t", b"r", b"f"
"""Kinds of answers: the text, what the template itself says against the messages, and why it fails."""
MARKS = ("generation_begins_here", "generation_ends_here")
"""Variables that are written before and after what the model writes."""
MAX_WORDS = 400
"""Characters of a message; the rest is cut."""


class Refused(jinja2.TemplateError):
    """The template calls `raise_exception`."""


class Generation(jinja2.ext.Extension):
    """`{% generation %}`, which marks what the model writes: what is in it is rendered, between the values of MARKS
    where these are given."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        before, after = (jinja2.nodes.Output([jinja2.nodes.Name(name, "load")]) for name in MARKS)
        return jinja2.nodes.Scope([before, *body, after]).set_lineno(line)


class Namespace(jinja2.utils.Namespace):
    """Without attributes that begin with an underscore, which Python's own objects have."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        values = dict(*rest, **kwargs)
        for name in values:
            _check_attribute(name)
        jinja2.utils.Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute(name)
        super().__setitem__(name, value)


class Dict:
    """`dict` of templates: it makes dictionaries, and has no other attribute."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def render(source: str, variables: Mapping[str, Any], limit: int) -> str:
    """The text. ValueError if it has more than `limit` characters or is not Unicode."""
    pieces, size = [], 0
    if isinstance(messages := variables.get("messages"), list):
        reads_parts, reads_text = _content_forms(source)
        variables = {**variables, "messages": [_in_form(each, reads_parts, reads_text) for each in messages]}
    for piece in _compiled(source).generate(**variables):
        pieces.append(piece)
        size += len(piece)
        if size > limit:
            raise ValueError(f"the text has more than {limit:,} characters")
    text = "".join(pieces)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"the text has half a surrogate pair at character {error.start}") from None
    return text


def explain(error: Exception) -> str:
    """Why rendering fails, in at most MAX_WORDS characters of one line."""
    if isinstance(error, MemoryError):
        return "it takes too much memory"
    words = " ".join(str(error)[: 2 * MAX_WORDS].split())
    if isinstance(error, jinja2.TemplateSyntaxError):
        words = f"line {error.lineno}: {words}"
    elif not isinstance(error, jinja2.TemplateError | ValueError | OverflowError):
        words = f"{type(error).__name__}: {words}"
    return words[:MAX_WORDS]


@lru_cache(16)
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


@lru_cache(16)
def _content_forms(source: str) -> tuple[bool, bool]:
    """Whether a template reads a message's content as a list of parts (it has a loop over it), and whether as a text
    (it has no such loop, or asks whether it is a string)."""
    tree = _environment().parse(source)
    names = {"content"}  # of macros' arguments, for one

    def is_content(node: jinja2.nodes.Node) -> bool:
        match node:
            case jinja2.nodes.Name(name=name):
                return name in names
            case jinja2.nodes.Getattr(attr="content") | jinja2.nodes.Getitem(arg=jinja2.nodes.Const(value="content")):
                return True
            case jinja2.nodes.Filter(node=jinja2.nodes.Node() as inner):
                return is_content(inner)
        return False

    for assignment in tree.find_all(jinja2.nodes.Assign):
        if isinstance(assignment.target, jinja2.nodes.Name) and is_content(assignment.node):
            names.add(assignment.target.name)
    reads_parts = any(is_content(loop.iter) for loop in tree.find_all(jinja2.nodes.For))
    tests = (test for test in tree.find_all(jinja2.nodes.Test) if test.name == "string")
    return reads_parts, not reads_parts or any(is_content(test.node) for test in tests)


def _in_form(message: Any, reads_parts: bool, reads_text: bool) -> Any:
    """The message with its content as the template reads it. Parts of text become one text with a line each."""
    content = message.get("content") if isinstance(message, dict) else None
    if isinstance(content, str) and not reads_text:
        return {**message, "content": [{"type": "text", "text": content}]}
    if isinstance(content, list) and not reads_parts:
        texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
        if len(texts) == len(content):
            return {**message, "content": "\n".join(texts)}
    return message


def _environment() -> ImmutableSandboxedEnvironment:
    """What published templates expect to find, as in transformers."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": Namespace,
    }
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON in which no HTML is escaped."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise Refused(message)


def _check_attribute(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace has no attribute {name!r}")


def read_message(stream: BinaryIO) -> bytes | None:
    """The next message; None at the end of the stream."""
    head = stream.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (size,) = LENGTH.unpack(head)
    content = stream.read(size)
    return content if len(content) == size else None


def write_message(stream: BinaryIO, content: bytes) -> None:
    stream.write(LENGTH.pack(len(content)))
    stream.write(content)
    stream.flush()


def answer(source: str, variables: Mapping[str, Any], limit: int) -> bytes:
    """The text of a template or why there is none, and before it the kind of the answer."""
    try:
        return TEXT + render(source, variables, limit).encode()
    except Refused as error:
        return REFUSED + explain(error).encode("utf-8", "replace")
    except Exception as error:  # a template may raise anything
        return FAILED + explain(error).encode("utf-8", "replace")


def _limit_memory(size: int) -> None:
    try:
        import resource
    except ImportError:  # not everywhere
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    if hard == resource.RLIM_INFINITY or size < hard:
        resource.setrlimit(resource.RLIMIT_AS, (size, hard))


def main(memory: int, cpu_seconds: float, seconds: float) -> None:
    """Answers until the pipe closes. The process ends itself if one text takes too long: CPython cannot interrupt a
    single operation such as 10 ** 10 ** 8."""
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    has_cpu_timer = hasattr(signal, "setitimer")
    _limit_memory(memory)
    with open(os.devnull, "w", encoding="utf-8") as nowhere:

        def limit(cpu: float) -> None:
            """The time from now on; 0 for any."""
            if cpu:
                faulthandler.dump_traceback_later(seconds, exit=True, file=nowhere)
            else:
                faulthandler.cancel_dump_traceback_later()
            if has_cpu_timer:
                signal.setitimer(signal.ITIMER_PROF, cpu)  # SIGPROF ends the process

        while (message := read_message(requests)) is not None:
            limit(cpu_seconds)
            texts = []
            try:
                request = json.loads(message.decode("utf-8", "surrogatepass"))
                for variables in request["each"]:
                    limit(cpu_seconds)
                    texts.append(answer(request["source"], variables, request["limit"]))
            except Exception as error:  # nested too deeply to be read, for one
                texts = [FAILED + explain(error).encode("utf-8", "replace")]
            limit(0)
            write_message(answers, b"".join(LENGTH.pack(len(each)) + each for each in texts))


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))
