"""Chats with a swarm in the dashboard, in a real browser before a real server; what the model writes is hostile."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from synthe_core.serving.api.server import Server
from synthe_core.swarm.team import Swarm
from tests.serving.browser import PROGRAM, Browser
from tests.serving.swarm_pages import WRONG, opened, served, team, texts
from tests.serving.test_page import IDLE, READY, begin, button, chromium, say  # noqa: F401

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    folder = team(tmp_path_factory.mktemp("swarm"))
    with opened(folder) as made:
        made.recollection.knowledge.add("", "France", "capital", "Paris")
        yield made


@pytest.fixture(scope="module")
def server(swarm: Swarm, chromium: Browser) -> Iterator[Server]:  # noqa: F811
    with served(swarm, chromium) as made:
        yield made


@pytest.fixture
def page(chromium: Browser, server: Server) -> Iterator[Browser]:  # noqa: F811
    """The page of a new visitor; at the end nothing that was written may have run, and nothing may have failed."""
    begin(chromium, server.url)
    chromium.wait(READY)
    yield chromium
    assert chromium.faults == []
    assert chromium.do("window.hit === undefined && !document.querySelector('main img, #log img')")


def test_an_answer_says_whose_it_is_and_marks_what_contradicts(page: Browser, server: Server, swarm: Swarm) -> None:
    say(page, "count")
    (answer,) = swarm.record.answers.newest(1)
    assert texts(page, ".turn.assistant .body") == [answer.text]
    (credit,) = texts(page, ".credit .by")
    assert credit.startswith(f"{answer.by} answered, ") and "also drafted: " in credit
    marks = texts(page, "mark.contradiction")
    assert set(marks) == {WRONG} and len(marks) == answer.text.count(WRONG)
    (listed,) = texts(page, ".contradictions li")
    assert f"{WRONG} ({len(marks)} times) contradicts what is known: France capital Paris" in listed
    page.do("document.querySelector('mark.contradiction').focus()")
    assert "France capital Paris (f1, written by who runs the swarm" in texts(page, "#fact")[0]
    page.press("Escape")
    assert page.do("document.querySelector('#fact').hidden")
    page.hover("mark.contradiction")
    page.wait("!document.querySelector('#fact').hidden")
    assert page.do("document.querySelector('#tip').hidden")
    page.open(server.url)
    page.wait(READY)
    assert texts(page, "mark.contradiction") == marks and texts(page, ".turn.assistant .body") == [answer.text]


def test_drafts_are_shown_while_several_work_on_an_answer(page: Browser) -> None:
    """As text, each beside its name, and gone when the answer is there."""
    page.do(
        "window.drafts = {}; new MutationObserver(() => { for (const p of document.querySelectorAll('.drafts p')) "
        "window.drafts[p.querySelector('b').textContent] = p.querySelector('span').textContent; })"
        ".observe(document.querySelector('#log'), { childList: true, subtree: true, characterData: true }); true"
    )
    say(page, "count")
    drafts = page.do("window.drafts")
    assert sorted(drafts) == ["history-of-long-names-in-use", "maths", "python"]
    assert all(0 < len(text) <= 120 for text in drafts.values())
    assert texts(page, ".drafts") == []


def test_an_answer_is_rated_and_corrected(page: Browser, server: Server, swarm: Swarm) -> None:
    say(page, "count again")
    (answer,) = swarm.record.answers.newest(1)
    button(page, "Good")
    page.wait("document.querySelector('.rating .note').textContent === 'Rated as good.'")
    assert swarm.record.answers.get(answer.id).success == 1
    button(page, "Correct")
    assert page.do("document.activeElement.value") == answer.text
    page.do("document.activeElement.value = 'Paris <img src=x onerror=window.hit=1>'")
    page.do("s = document.querySelector('.correction select'); s.value = 'maths'")
    button(page, "Send")  # that of the message box has no text to send
    page.do("document.querySelector('.correction').requestSubmit()")
    page.wait("document.querySelector('.rating .note').textContent.startsWith('Corrected.')")
    pair = swarm.feedback.pairs()[-1]
    assert (pair.prompt, pair.rejected) == ("count again", answer.text) and pair.chosen.startswith("Paris <img")
    assert swarm.record.answers.get(answer.id).success == 0
    page.open(server.url)
    page.wait(READY)
    assert texts(page, ".rating .note")[0].startswith("Corrected.")


def test_what_a_named_user_says_becomes_a_fact(page: Browser, swarm: Swarm) -> None:
    say(page, "I live in Rome.")
    assert swarm.recollection.knowledge.conversations.names("") == []
    page.do("u = document.querySelector('#user'); u.value = 'ann'; u.dispatchEvent(new Event('input'))")
    say(page, "I live in Oslo.")
    (fact,) = swarm.recollection.knowledge.facts.current("ann")
    assert (fact.predicate, fact.object, fact.trusted) == ("lives in", "Oslo", True)
    say(page, "Where do I live?")
    page.do("document.querySelector('.turn:last-child .why').open = true")
    assert "[f2] the user / lives in / Oslo" in texts(page, ".turn:last-child .known li")


def test_a_specialist_is_addressed_and_base_chats_as_ever(page: Browser, swarm: Swarm) -> None:
    page.do("m = document.querySelector('#model'); m.value = 'maths'; m.dispatchEvent(new Event('change'))")
    say(page, "hello")
    assert texts(page, ".credit .by")[0].startswith("maths answered, ")
    assert page.do("document.querySelector('#mode').hidden")
    page.do("m = document.querySelector('#model'); m.value = 'base'; m.dispatchEvent(new Event('change'))")
    assert not page.do("document.querySelector('#mode').hidden")
    say(page, "and you")
    assert page.do("document.querySelectorAll('.credit').length") == 1
    assert page.do("document.querySelectorAll('.turn.assistant .t').length") > 1


def test_an_answer_fits_a_phone(page: Browser, server: Server) -> None:
    begin(page, server.url, 360, touch=True)
    page.wait(READY)
    say(page, "count " + "longwordwithoutanyspace" * 10)
    page.do("document.querySelector('.why').open = true")
    button(page, "Correct")
    wide = "[document.documentElement, document.querySelector('#scroll')].every(e => e.scrollWidth <= 360)"
    assert page.do(f"innerWidth === 360 && {wide} && document.querySelectorAll('.contradictions li').length > 0")
