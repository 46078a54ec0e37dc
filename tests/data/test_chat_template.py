"""Chat templates: what transformers renders, and nothing that a stranger's code does to this process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from synthe_core.data import chat_template as chat
from synthe_core.data.chat_template import TemplateError, Workers, render
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from tests.data import templates

CHAT = [
    {"role": "user", "content": "hé {{ x }} <|im_end|> \"'&"},
    {"role": "assistant", "content": " yo\n"},
    {"role": "user", "content": "日本 🙂"},
]
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"type": "function", "function": {"name": "now", "description": "é", "parameters": {"a": [1, None]}}}


def tokenizer(template: str | None, **names: str) -> ByteTokenizer:
    made = ByteTokenizer()
    made.chat_template, made.special_tokens = template, names
    return made


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    """With a short limit, which is of the processor's time and not of a clock."""
    made = Workers(cpu_seconds=0.4)
    yield made
    made.close()


@pytest.mark.parametrize("name", templates.ALL)
@pytest.mark.parametrize("messages", [CHAT, [SYSTEM, *CHAT], CHAT[:2], CHAT[1:]])
@pytest.mark.parametrize("tools", [None, [TOOL, TOOL]])
@pytest.mark.parametrize("answer", [True, False])
def test_what_transformers_renders(name: str, messages: object, tools: object, answer: bool) -> None:
    pytest.importorskip("transformers")
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    names = {"bos_token": "<s>", "eos_token": "<|im_end|>", "pad_token": "</s>"}
    source = templates.ALL[name]
    theirs = ours = None
    try:
        (theirs,), _ = render_jinja_template(
            [messages], tools=tools, chat_template=source, add_generation_prompt=answer, **names
        )
    except jinja2.TemplateError as error:
        theirs = f"the chat template refuses these messages: {error}"
    try:
        ours = render(tokenizer(source, **names), messages, answer=answer, variables={"tools": tools})  # type: ignore[arg-type]
    except TemplateError as error:
        ours = error.message
    assert ours == theirs


HOSTILE: dict[str, str | None] = {
    "{{ 'a' * 10**9 }}": "memory",
    "{{ [0] * 10**9 }}": "memory",
    "{{ 10 ** (10 ** 8) }}": "takes more than",
    "{{ 9 ** (9 ** 9) > 1 }}": None,
    "{{ 1/0 }}": "ZeroDivisionError",
    "{% for i in range(10**9) %}x{% endfor %}": "Range too big",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "takes more than",
    "{% for i in range(99999) %}{% for j in range(99999) %}xx{% endfor %}{% endfor %}": None,
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}": "RecursionError",
    "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}": "takes more than",
    "{% set n = namespace(s='a') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}": None,
    "{{ (['a' * 1000] * 10000000) | join }}": None,
    "{{ '%1000000000d' % 1 }}": "memory",
    "{{ '{:1000000000}'.format(1) }}": "memory",
    "{{ 'x'.ljust(10**9) }}": "memory",
    "{{ 'x' | center(10**9) }}": None,
    "{{ messages | tojson(indent=10**9) }}": None,
    "{{ lipsum(n=10**8) }}": None,
    '{{ "\\ud800" }}': "surrogate",
    "{{ x.y }}": "undefined",
    "{{ ''.__class__.__mro__ }}": None,
    "{% if %}": "line 1",
    "{{" + "(" * 3000 + "1" + ")" * 3000 + "}}": "RecursionError",
    "{% include 'x' %}": None,
    "{{ namespace(__class__=1) }}": "namespace",
}


@pytest.mark.parametrize("source", HOSTILE)
def test_whatever_a_template_does_is_one_line(source: str, workers: Workers) -> None:
    with pytest.raises(TemplateError, match=HOSTILE[source]) as raised:
        workers.render(source, {"messages": CHAT})
    assert raised.value.message.startswith("the chat template fails: ") and not raised.value.refused
    assert "\n" not in raised.value.message and len(raised.value.message) < 500
    assert workers.render("{{ messages[0].role }}", {"messages": CHAT}) == "user"  # the next one is rendered


def test_the_text_has_a_limit(workers: Workers) -> None:
    assert workers.render("{{ 'a' * 100 }}", {}, limit=100) == "a" * 100
    for source in ("{{ 'a' * 101 }}", "{% for i in range(99) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}"):
        with pytest.raises(TemplateError, match="more than 100 characters"):
            workers.render(source, {}, limit=100)


def test_a_template_refuses_messages_in_its_own_words() -> None:
    with pytest.raises(TemplateError, match="refuses these messages: System role not supported") as raised:
        render(tokenizer(templates.GEMMA), [SYSTEM, *CHAT])
    assert raised.value.refused


def test_half_a_surrogate_pair_in_a_message_is_named(workers: Workers) -> None:
    with pytest.raises(TemplateError, match="surrogate pair at character 1"):
        workers.render("{{ x }}", {"x": "a\ud83d"})
    assert workers.render("{{ x | length }}", {"x": "a\ud83d"}) == "2"


def test_a_process_that_died_is_replaced(workers: Workers) -> None:
    assert workers.render("a", {}) == "a"
    for each in workers._idle:
        each.kill()
    assert workers.render("b", {}) == "b"


def test_several_threads_render_at_once(workers: Workers) -> None:
    texts: dict[int, str] = {}

    def work(number: int) -> None:
        texts[number] = "".join(workers.render("{{ x }},", {"x": number}) for _ in range(20))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(120)
    assert texts == {number: f"{number}," * 20 for number in range(6)}
    assert len(workers._idle) <= chat.MAX_IDLE


def test_special_tokens_have_the_names_of_the_configuration() -> None:
    source = "{{ bos_token }}|{{ eos_token }}|{{ pad_token }}"
    assert render(tokenizer(source), CHAT) == "|<|endoftext|>|"
    assert render(tokenizer(source, bos_token="<s>", eos_token="<e>"), CHAT) == "<s>|<e>|"


def test_a_model_without_a_template() -> None:
    with pytest.raises(InputError, match="no chat template"):
        render(tokenizer(None), CHAT)


def test_many_texts_are_those_of_each_alone(workers: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the template refuses some, fails with others, and ends the process with one."""
    source = (
        "{% if x == 'r' %}{{ raise_exception('no r') }}{% elif x == 'f' %}{{ 1 // 0 }}"
        "{% elif x == 't' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
        "{% else %}{{ x }}{% endif %}"
    )
    each: list[dict[str, Any]] = [{"x": x} for x in ("a", "r", "b", "f", "c", "t", "d", "日" * 400)]

    def shown(texts: list[Any]) -> list[str]:
        return [f"{type(text).__name__}: {text}" for text in texts]

    alone = []
    for variables in each:
        try:
            alone.append(workers.render(source, variables))
        except TemplateError as error:
            alone.append(error)
    assert [isinstance(text, str) for text in alone] == [True, False, True, False, True, False, True, True]
    assert shown(workers.render_each(source, each)) == shown(alone)
    monkeypatch.setattr(chat, "BATCH", 20)
    assert shown(workers.render_each(source, each)) == shown(alone)


def test_messages_that_are_no_json_fail_alone(workers: Workers) -> None:
    texts = workers.render_each("{{ x }}", [{"x": 1}, {"x": {1, 2}}, {"x": 3}])
    assert texts[0] == "1" and texts[2] == "3"
    assert "the messages are no JSON" in str(texts[1])
