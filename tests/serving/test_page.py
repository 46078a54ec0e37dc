"""The dashboard in a real browser, in front of a real server and small models that write HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import httpx
import pytest
import tokenizers

from synthe_core.data.tokenizers import FileTokenizer
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.evaluation.models import saved
from tests.paths import ROOT
from tests.serving.browser import CONTROL, PROGRAM, Browser, browser

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")
PAGE = ROOT / "synthe_core" / "serving" / "page"

HOSTILE = ["<img src=x onerror=window.hit=1> ", "<script>window.hit=1</script> ", "</div><b>", "&lt;", "\n", " é "]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
BLOCK = [{"type": "momentum"}, {"type": "delta", "heads": 2}, {"type": "kalman"}, {"type": "mlp", "hidden": 32}]
SETTINGS = {"seed": 5, "max_tokens": 16}
READY = "!document.querySelector('#model').disabled"
IDLE = "document.querySelector('.after') && document.querySelector('#stop').hidden"
TEXT = "[...document.querySelectorAll('.turn.assistant .body')].map(e => e.textContent)"


def markup() -> FileTokenizer:
    """Every token is a piece of HTML, so whatever the model says is."""
    words = [*HOSTILE, *(f"<i id=w{i}>" for i in range(800)), "?"]
    vocab = {word: i for i, word in enumerate(words)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "isolated")
    made = FileTokenizer(inner, "markup")
    made.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[LoadedModel]:
    folder = tmp_path_factory.mktemp("models")
    plain = markup()
    plain.chat_template = None
    paths = [saved(folder / "talker", BLOCK, markup(), confidence={}), saved(folder / "writer", tokenizer=plain)]
    return [LoadedModel.load(path) for path in paths]


@pytest.fixture(scope="module")
def engine(models: list[LoadedModel]) -> Iterator[AsyncEngine]:
    with AsyncEngine(models) as made:
        yield made


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("browser")) as made:
        yield made


@pytest.fixture(scope="module")
def server(engine: AsyncEngine, chromium: Browser) -> Iterator[Server]:
    with Server(engine, Settings()) as made:
        yield made
        chromium.call("Page.navigate", url="about:blank")  # or the server waits for its connections


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Browser]:
    """The page as somebody meets it who was never there; at the end nothing may have gone wrong in it."""
    begin(chromium, server.url)
    chromium.wait(READY)
    yield chromium
    assert chromium.faults == []
    assert {re.match(r"data:|https?://[^/]+", address)[0] for address in chromium.requests} <= {server.url, "data:"}  # type: ignore[index]
    assert chromium.do("window.hit === undefined")


def begin(page: Browser, url: str, width: int = 1280, *, touch: bool = False, **settings: object) -> None:
    """A new visitor, for whom only the settings are chosen: short answers, always the same."""
    page.open(f"{url}/health", width, touch=touch)
    chosen = json.dumps(json.dumps(SETTINGS | settings))
    page.do(f"localStorage.clear(); sessionStorage.clear(); localStorage['synthe.settings'] = {chosen}")
    page.open(url, width, touch=touch)
    page.faults.clear()
    page.requests.clear()


def say(page: Browser, text: str, *, wait: bool = True) -> None:
    page.do("document.querySelector('#prompt').focus()")
    page.write(text)
    page.press("Enter", CONTROL)
    if wait:
        page.wait(IDLE)


def button(page: Browser, label: str) -> None:
    page.do(f"[...document.querySelectorAll('button')].find(b => b.textContent === {json.dumps(label)}).click()")


def choose(page: Browser, model: str) -> None:
    page.do(f"m = document.querySelector('#model'); m.value = '{model}'; m.dispatchEvent(new Event('change'))")


def test_an_answer_is_streamed_and_equals_the_response(page: Browser, server: Server, engine: AsyncEngine) -> None:
    say(page, "hello", wait=False)
    page.wait("document.querySelectorAll('.turn.assistant .t').length > 1")
    page.wait(IDLE)
    body = {"model": "talker", "temperature": 0.8, "top_p": 0.95, "max_tokens": 16, "seed": 5}
    messages = [{"role": "user", "content": "hello"}]
    first = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "messages": messages}).json()
    assert page.do(TEXT) == [first["choices"][0]["message"]["content"]]
    known = {info.id: info.tokens for info in engine.sessions.list()}
    say(page, "and then")
    assert len(page.do(TEXT)) == 2
    (session,) = [info for info in engine.sessions.list() if info.tokens > known.get(info.id, 0)]
    assert session.tokens > known[session.id] >= 16  # it went on with what it remembered
    news = [request for request in page.do("performance.getEntriesByType('resource').map(e => e.name)")]
    assert any(name.endswith("/v1/chat/completions") for name in news)


def test_html_from_a_model_is_text(page: Browser) -> None:
    say(page, "<img src=x onerror=window.hit=2>")
    assert page.do("document.querySelector('.turn.user .body').textContent") == "<img src=x onerror=window.hit=2>"
    assert "<i id=w" in page.do(TEXT)[0]
    assert page.do("document.querySelector('#log').querySelectorAll('img, script, i, b').length") == 0
    page.hover(".turn.assistant .t")
    page.wait("!document.querySelector('#tip').hidden")
    button(page, "Inspect")
    page.wait("document.querySelector('.grid canvas')")
    assert page.do("document.querySelector('#log').querySelectorAll('img, script, i').length") == 0
    page.do("document.querySelector('#sessions .open').innerHTML.includes('<img') && (window.hit = 3)")


def test_escape_stops_an_answer_and_the_conversation_continues(
    page: Browser, server: Server, engine: AsyncEngine
) -> None:
    begin(page, server.url, max_tokens=4000, seed=2)
    page.wait(READY)
    say(page, "hello", wait=False)
    page.wait("document.querySelectorAll('.turn.assistant .t').length > 3")
    assert page.do("document.querySelector('#send').hidden && !document.querySelector('#stop').hidden")
    page.press("Escape")
    page.wait(IDLE)
    assert "stopped" in page.do("document.querySelector('.note').textContent")
    stopped = page.do(TEXT)[0]
    page.wait("fetch('/api/status').then(r => r.json()).then(s => s.live === 0)")
    page.do("n = document.querySelector('#max_tokens'); n.value = 8; n.dispatchEvent(new Event('input'))")
    say(page, "go on")
    assert page.do(TEXT)[0] == stopped and page.do(TEXT)[1]
    button(page, "Regenerate")
    page.wait(IDLE)
    assert len(page.do(TEXT)) == 2


def test_a_fork_is_a_second_session_and_delete_needs_confirmation(page: Browser, engine: AsyncEngine) -> None:
    for info in engine.sessions.list():
        engine.sessions.delete(info.id)
    say(page, "hello")
    page.click("#sessions [title=Fork]")
    page.wait("document.querySelectorAll('#sessions .open').length === 2")
    page.wait("document.querySelector('#sessions [aria-current=true]').textContent.includes('(fork)')")
    assert len(engine.sessions.list()) == 2
    first, second = engine.sessions.list()
    assert first.tokens == second.tokens
    say(page, "here it goes its own way")
    assert len({info.tokens for info in engine.sessions.list()}) == 2
    page.do("[...document.querySelectorAll('#sessions .open')].find(b => !b.textContent.includes('(fork)')).click()")
    page.wait("document.querySelectorAll('.turn').length === 2")
    page.click("#sessions li:has([aria-current=true]) [title=Delete]")
    assert len(engine.sessions.list()) == 2
    engine.sessions.fork(first.id, "by-another-program")  # the list is drawn again
    page.do("import(new URL('page/conversations.js', location.href)).then(module => module.refresh())")
    page.wait("document.querySelectorAll('#sessions .open').length === 3")
    page.click("#sessions li:has([aria-current=true]) [title=Delete]")
    page.wait("document.querySelectorAll('#sessions .open').length === 2")
    assert len(engine.sessions.list()) == 2


def test_a_conversation_survives_a_reload(page: Browser, server: Server, engine: AsyncEngine) -> None:
    say(page, "hello")
    texts = page.do(TEXT)
    page.open(server.url)
    page.wait(READY)
    assert page.do(TEXT) == texts
    page.wait("document.querySelector('#sessions [aria-current=true] .dot:not([hidden])')")
    say(page, "again")
    assert len(page.do(TEXT)) == 2
    # What another program has left is there to be gone on with, though its text is not.
    page.do("localStorage.removeItem('synthe.conversations')")
    page.open(server.url)
    page.wait("document.querySelector('#sessions .open')")
    page.click("#sessions .open")
    page.wait("document.body.innerText.includes('The server has the state of this conversation')")
    say(page, "still there")
    assert len(page.do(TEXT)) == 1


def test_confidence_is_a_colour_that_can_be_switched_off(page: Browser) -> None:
    say(page, "hello")
    shade = "[...document.querySelectorAll('.turn.assistant .t')].map(e => getComputedStyle(e).backgroundColor)"
    clear = "rgba(0, 0, 0, 0)"
    assert any(each != clear for each in page.do(shade))
    steps = "[0, 1, 2, 3, 4, 5].map(i => getComputedStyle(document.querySelector(`#legend .c${i}`)).backgroundColor)"
    assert len(set(page.do(steps))) == 6
    page.hover(".turn.assistant .t:nth-child(3)")
    page.wait("!document.querySelector('#tip').hidden")
    assert re.search(r"confidence [\d<.]+%", page.do("document.querySelector('#tip').textContent"))
    assert page.do("document.querySelectorAll('#tip li').length") >= 5
    page.do("document.querySelector('.turn.assistant .body').focus()")
    page.press("ArrowRight")
    assert re.match(r"“.+”, probability [\d<.]+%", page.do("document.querySelector('#announcement').textContent"))
    page.click("#tint")
    assert set(page.do(shade)) == {clear}


def test_the_layers_of_the_last_answer(page: Browser) -> None:
    say(page, "hello")
    button(page, "Inspect")
    page.wait("document.querySelector('.grid canvas')")
    groups = page.do("[...document.querySelectorAll('.tabs button')].map(b => b.textContent)")
    assert {"Gates", "Memory", "Confidence"} <= set(groups)
    assert page.do("[...new Set([...document.querySelectorAll('.grid h4')].map(h => h.textContent))]") == [
        "block 0",
        "block 1",
    ]
    assert page.do("document.querySelectorAll('.grid canvas')[0].width") == page.do(
        "document.querySelectorAll('.turn.assistant .t').length"
    )
    page.hover(".turn.assistant .t:nth-child(2)")
    page.wait("document.querySelector('.selection').textContent.includes('token 2 of')")
    assert page.do("document.querySelector('.says').textContent") != ""


def test_a_model_without_a_template_continues_a_text(page: Browser, engine: AsyncEngine) -> None:
    choose(page, "writer")
    assert page.do("document.querySelector('[data-mode=text]').getAttribute('aria-pressed')") == "true"
    say(page, "&lt; &lt;")
    first = page.do("document.querySelector('.page .assistant').textContent")
    assert first
    button(page, "Continue")
    page.wait("document.querySelectorAll('.page .assistant').length === 2 && document.querySelector('#stop').hidden")
    assert page.do("document.querySelectorAll('.page .user').length") == 1


def test_the_layout_fits_a_phone(page: Browser, server: Server) -> None:
    begin(page, server.url, 360, touch=True)
    page.wait(READY)
    wide = "[document.documentElement, document.querySelector('#scroll')].every(e => e.scrollWidth <= 360)"
    fits = f"innerWidth === 360 && {wide}"
    assert page.do(fits)
    say(page, "hello " + "longwordwithoutanyspace" * 10)
    assert page.do(fits)
    button(page, "Inspect")
    page.wait("document.querySelector('.grid canvas')")
    assert page.do(fits)
    for pane in ("list", "rail", "chat"):
        page.click(f".panes [data-pane={pane}]")
        assert page.do(fits), pane
        assert page.do(
            "[...document.querySelectorAll('#list, #rail, #chat')].filter(e => e.offsetParent).map(e => e.id)"
        ) == [pane]


def test_the_keyboard_reaches_every_control(page: Browser) -> None:
    say(page, "hello")
    page.wait("document.querySelector('#sessions .dot:not([hidden])')")
    page.do(  # by what they are called: the list of conversations may be drawn anew at any time
        "window.called = e => e.id || e.ariaLabel || (e.querySelector('b') ?? e).textContent.trim() || e.outerHTML;"
        "window.wanted = new Set([...document.querySelectorAll('button, select, input, textarea, a, [tabindex]')]"
        ".filter(e => e.checkVisibility() && !e.disabled && e.tabIndex >= 0).map(called));"
        "document.activeElement.blur()"
    )
    assert page.do("wanted.size") > 20
    for _ in range(3 * page.do("wanted.size")):
        page.press("Tab")
        if page.do("wanted.delete(called(document.activeElement)), wanted.size") == 0:
            break
    assert page.do("[...wanted]") == []
    page.do("document.querySelector('#new').focus()")
    page.press("Tab")
    assert page.do("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    named = "e.textContent.trim() || e.ariaLabel || e.labels?.length"
    every = "[...document.querySelectorAll('button, select, input, textarea')]"
    assert page.do(f"{every}.filter(e => !({named})).map(e => e.outerHTML)") == []


def test_light_and_dark(page: Browser, server: Server) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.do(paper)
    page.open(server.url, dark=True)
    dark = page.do(paper)
    assert dark != light
    page.click("#theme")
    assert page.do(paper) == light
    page.open(server.url, dark=True)
    assert page.do(paper) == light


def test_a_server_that_does_not_answer(page: Browser) -> None:
    page.call("Network.setBlockedURLs", urls=["*/v1/*", "*/api/*"])
    say(page, "hello", wait=False)
    page.wait("document.querySelector('div.bad')")
    assert "does not respond" in page.do("document.querySelector('div.bad').textContent")
    page.wait("document.querySelector('#pulse').dataset.state === 'off'")
    page.call("Network.setBlockedURLs", urls=[])
    button(page, "Try again")
    page.wait(f"{IDLE} && !document.querySelector('div.bad')")
    assert page.do(TEXT)[0]
    page.faults[:] = [fault for fault in page.faults if "ERR_BLOCKED" not in fault]


def test_the_api_key_dialog_stores_the_key_for_the_tab(chromium: Browser, models: list[LoadedModel]) -> None:
    with Server(AsyncEngine(models), Settings(keys=("secret",))) as server:
        begin(chromium, server.url)
        chromium.wait("document.querySelector('#lock').open")
        for key, after in (
            ("wrong", "!document.querySelector('#wrong').hidden"),
            ("secret", "!document.querySelector('#model').disabled"),
        ):
            chromium.do("document.querySelector('#key').focus()")
            chromium.write(key)
            chromium.press("Enter")
            chromium.wait(after)
        assert chromium.do("[sessionStorage['synthe.key'], JSON.stringify(localStorage).includes('secret')]") == [
            "secret",
            False,
        ]
        say(chromium, "hello")
        assert chromium.do(TEXT)[0]
        chromium.call("Page.navigate", url="about:blank")
    assert not [fault for fault in chromium.faults if "401" not in fault]


def test_no_file_loads_external_resources() -> None:
    for path in PAGE.iterdir():
        text = path.read_text(encoding="utf-8")
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|\bon\w+=\"|style=\"", text
        ), path
        assert not re.findall(r"https?://(?!www\.w3\.org/)", text), path
        assert len(text.splitlines()) < 400, path
