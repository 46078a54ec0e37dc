"""What the dashboard shows of a swarm, in a real browser before a real server; what people wrote is hostile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from synthe_core.events import Metric, Progress
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from synthe_core.swarm.feedback.pairs import Pairs, PairSource
from synthe_core.swarm.learning.state import LearningState
from synthe_core.swarm.models import load_models
from synthe_core.swarm.team import Swarm
from tests.serving.browser import PROGRAM, Browser
from tests.serving.swarm_pages import opened, populate, served, team, texts
from tests.serving.test_page import IDLE, READY, begin, button, chromium, say  # noqa: F401
from tests.swarm.test_team import OPTIONS

VIEWS = ("specialists", "pathways", "knowledge", "pairs", "learning")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def busy_swarm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swarm]:
    """A swarm with ratings, facts, pairs, versions and proposals."""
    path = tmp_path_factory.mktemp("busy")
    folder = team(path)
    with opened(folder) as made:
        populate(made, path / "adapters")
        yield made


@pytest.fixture(scope="module")
def busy_server(busy_swarm: Swarm, chromium: Browser) -> Iterator[Server]:  # noqa: F811
    with served(busy_swarm, chromium) as made:
        yield made


@pytest.fixture
def view(chromium: Browser, busy_server: Server) -> Iterator[Browser]:  # noqa: F811
    """The view of the swarm, opened by its button."""
    begin(chromium, busy_server.url)
    chromium.wait(READY)
    chromium.click("#swarm-open")
    wait_for(chromium, "specialists")
    yield chromium
    assert chromium.faults == []
    assert chromium.do("window.hit === undefined && !document.querySelector('main img, main script')")


def wait_for(page: Browser, name: str) -> None:
    page.wait(f"document.querySelector('.view')?.dataset.view === '{name}'")
    page.wait("document.querySelector('.view').getAttribute('aria-busy') === 'false'")


def go(page: Browser, name: str) -> None:
    page.click(f"[data-view={name}]")
    wait_for(page, name)


def test_without_a_swarm_there_is_no_view_of_one(chromium: Browser, tmp_path: Path) -> None:  # noqa: F811
    with Server(AsyncEngine(load_models(team(tmp_path)), **OPTIONS), Settings()) as plain:
        begin(chromium, plain.url)
        chromium.wait(READY)
        assert chromium.do(
            "document.querySelector('#swarm-open').hidden && document.querySelector('#user-field').hidden"
        )
        chromium.open(f"{plain.url}/health")
        chromium.open(f"{plain.url}/#swarm/pairs")
        chromium.wait(READY)
        assert chromium.do("document.body.dataset.pane") == "chat"
        chromium.call("Page.navigate", url="about:blank")
    assert chromium.faults == []


def test_an_empty_swarm_says_what_will_be_there(chromium: Browser, tmp_path: Path) -> None:  # noqa: F811
    folder = team(tmp_path)
    expected = {
        "specialists": "None. Similar requests",
        "pathways": "No answer has been rated",
        "knowledge": "No facts of everybody yet",
        "pairs": "Nothing to review",
        "learning": "Nothing has been learned",
    }
    with AsyncEngine(load_models(folder), **OPTIONS) as engine:
        empty = Swarm(folder, engine)
        with Server(engine, Settings(keyless_role="admin"), swarm=empty) as server:
            begin(chromium, server.url)
            chromium.wait(READY)
            chromium.click("#swarm-open")
            chromium.wait("document.querySelector('#views button')")
            for name, words in expected.items():
                go(chromium, name)
                chromium.wait(f"document.querySelector('.view').textContent.includes({json.dumps(words)})")
            chromium.call("Page.navigate", url="about:blank")
        empty.close()
    assert chromium.faults == []


def test_specialists_have_intervals_by_domain(view: Browser, busy_swarm: Swarm) -> None:
    heads = texts(view, ".specialists tbody:first-of-type th")
    assert heads[0].startswith("python<img src=x onerror=window.hit=1> writes code") and heads[1] == "python"
    beta = busy_swarm.record.records.of("python", "python")
    low, high = beta.interval
    (shown,) = [each for each in texts(view, ".specialists tbody:first-of-type .band")][1:2]
    assert shown == f"{beta.mean:.0%} {100 * low:.0f}–{100 * high:.0f}%"
    left, right, mean = view.do(
        "(([t, i, m]) => [i.left - t.left, i.right - t.left, m.left + m.width / 2 - t.left].map(x => x / t.width))"
        "([...document.querySelectorAll('tbody tr:nth-child(2) .scale')].slice(0, 1)"
        ".flatMap(s => [s, ...s.children]).map(e => e.getBoundingClientRect()))"
    )
    assert (left, right, mean) == pytest.approx((low, high, beta.mean), abs=0.01)


def test_pathways_are_as_wide_as_they_are_strong(view: Browser, busy_swarm: Swarm) -> None:
    go(view, "pathways")
    view.wait("document.querySelector('svg.pathways')")
    rows = texts(view, ".view tbody tr")
    paths = busy_swarm.record.pathways.all()
    assert [row.startswith(" + ".join(path.members)) for row, path in zip(rows, paths, strict=True)] == [True] * 4
    widths = view.do(
        "Object.fromEntries([...document.querySelectorAll('.edge')]"
        ".map(e => [e.textContent.split(':')[0], Number(e.getAttribute('stroke-width'))]))"
    )
    pairs = [path for path in paths if len(path.members) == 2]
    assert len(widths) == 2 and [widths[" + ".join(p.members)] for p in pairs] == sorted(widths.values(), reverse=True)
    assert "strongest: maths and python" in view.do("document.querySelector('svg.pathways').ariaLabel")
    places = "[...document.querySelectorAll('.pathways circle')].map(e => [e.cx.baseVal.value, e.cy.baseVal.value])"
    before = view.do(places)
    go(view, "specialists")
    go(view, "pathways")
    view.wait("document.querySelector('svg.pathways')")
    assert view.do(places) == before


def test_facts_are_searched_corrected_and_drawn(view: Browser, busy_swarm: Swarm) -> None:
    view.press("/")
    wait_for(view, "knowledge")
    view.wait("document.activeElement.id === 'fact-query' && document.querySelector('svg.facts')")
    assert "<img src=x onerror=window.hit=1>" in "".join(texts(view, "svg.facts title"))
    view.write("where does Bob live")
    view.press("Enter")
    view.wait("document.querySelector('ul.facts li').textContent.startsWith('Bob lives in Linz')")
    assert not [each for each in texts(view, "ul.facts li") if "Graz" in each]
    view.do("document.querySelector('#view input[type=checkbox]').click()")
    view.wait("[...document.querySelectorAll('ul.facts li')].some(e => e.textContent.includes('Graz'))")
    (past,) = [each for each in texts(view, "ul.facts li.past")]
    assert "superseded by" in past and "(Linz)" in past
    assert texts(view, "svg.facts .past title") == ["Bob lives in Graz"]
    view.do("document.querySelector('[aria-label=\"Correct: Bob lives in Linz\"]').click()")
    assert view.do("document.activeElement.value") == "Linz"
    view.do("document.activeElement.value = 'Wels'; document.activeElement.form.requestSubmit()")
    view.wait("[...document.querySelectorAll('ul.facts li')].some(e => e.textContent.startsWith('Bob lives in Wels'))")
    facts = busy_swarm.recollection.knowledge.facts
    assert [each.object for each in facts.current("") if each.subject == "Bob" and each.predicate == "lives in"] == [
        "Wels"
    ]


def test_what_is_stored_of_a_user_is_downloaded_and_deleted(view: Browser, busy_swarm: Swarm) -> None:
    knowledge = busy_swarm.recollection.knowledge
    knowledge.record_turn("eve", "one", "user", "I live in Oslo.")
    view.do("u = document.querySelector('#user'); u.value = 'eve'; u.dispatchEvent(new Event('input'))")
    go(view, "knowledge")
    view.wait("document.querySelector('ul.facts li').textContent.startsWith('user lives in Oslo')")
    view.do("URL.createObjectURL = blob => { window.saved = blob; return '#'; }")
    button(view, "Download")
    view.wait("window.saved")
    assert json.loads(view.do("saved.text()"))["facts"][0]["object"] == "Oslo"
    view.click(".stored button:last-of-type")
    assert len(knowledge.facts.current("eve")) == 1
    view.click(".stored button:last-of-type")
    view.wait("document.querySelector('.stored .note').textContent.startsWith('Deleted, ')")
    assert knowledge.facts.history("eve") == []
    view.wait("!document.querySelector('.results').textContent.includes('Oslo')")


def test_pairs_are_reviewed_by_the_keyboard(view: Browser, busy_swarm: Swarm) -> None:
    states = lambda: {each.id: (each.state.value, each.chosen) for each in busy_swarm.feedback.pairs()}  # noqa: E731
    view.press("4")
    wait_for(view, "pairs")
    view.wait("document.querySelectorAll('.review').length === 4")
    view.press("j")
    assert view.do("document.activeElement.ariaLabel") == "Pair 1"
    view.press("j")
    view.press("r")
    view.wait("document.querySelectorAll('.review').length === 3")
    assert view.do("document.activeElement.ariaLabel") == "Pair 3" and states()[2][0] == "rejected"
    view.press("k")
    view.press("a")
    view.wait("document.querySelectorAll('.review').length === 2")
    assert states()[1][0] == "approved"
    view.press("e")
    assert view.do("document.activeElement.value").startswith("It is 3.")
    view.press("Escape")
    assert view.do("document.activeElement.ariaLabel") == "Pair 3"
    view.press("e")
    view.do("document.activeElement.value = 'Three.'; document.activeElement.form.requestSubmit()")
    view.wait("document.querySelectorAll('.review').length === 1")
    assert states()[3] == ("approved", "Three.")
    view.click(".review [title^=Reject]")
    view.wait("document.querySelector('.pairs').textContent.startsWith('Nothing to review')")
    assert [state for state, _ in states().values()] == ["approved", "rejected", "approved", "rejected"]


def test_more_pairs_than_a_page_are_turned(chromium: Browser, tmp_path: Path) -> None:  # noqa: F811
    folder = team(tmp_path)
    with AsyncEngine(load_models(folder), **OPTIONS) as engine:
        many = Swarm(folder, engine)
        pairs = Pairs(many.store)
        for number in range(103):
            pairs.add("", f"Request {number}", "Better.", "Worse.", source=PairSource.CORRECTION, specialist="maths")
        with Server(engine, Settings(keyless_role="admin"), swarm=many) as server:
            begin(chromium, f"{server.url}/#swarm/pairs")
            shown = "[...document.querySelectorAll('.review')].map(e => e.ariaLabel)"
            for first, last, buttons in (
                (1, 50, ["Later pairs"]),
                (51, 100, ["From the oldest", "Later pairs"]),
                (101, 103, ["From the oldest"]),
            ):
                chromium.wait(f"{shown}[0] === 'Pair {first}' && {shown}.at(-1) === 'Pair {last}'")
                assert texts(chromium, "[aria-label=Pages] button") == buttons
                chromium.click("[aria-label=Pages] button:last-child")
            chromium.wait(f"{shown}[0] === 'Pair 1'")
            chromium.click("[aria-label=Pages] button:last-child")
            chromium.wait(f"{shown}[0] === 'Pair 51'")
            chromium.press("j")
            chromium.press("r")
            chromium.wait(f"!{shown}.includes('Pair 52')")
            assert pairs.get(52).state == "rejected"
            chromium.call("Page.navigate", url="about:blank")
        many.close()
    assert chromium.faults == []


def test_learning_has_curves_a_ledger_and_a_way_back(view: Browser, busy_swarm: Swarm) -> None:
    go(view, "learning")
    view.wait("document.querySelectorAll('svg.chart').length === 3")
    label = view.do("document.querySelector('svg.chart').ariaLabel")
    assert "promoted 50% to 70%" in label and "refused 70% to 40%" in label and "promoted 70% to 90%" in label
    assert view.do("document.querySelectorAll('svg.chart')[0].querySelectorAll('.refused').length") == 1
    rows = texts(view, ".ledger tbody tr")
    assert [word in row for row, word in zip(rows, ("70% → 90%", "it is worse <img", "50% → 70%"), strict=True)]
    (answering,) = texts(view, ".versions li:has(.now) b")
    assert answering == busy_swarm.folder.versions("maths").current == "adapters/maths/2"
    before = busy_swarm.digest("maths")
    view.click(".versions button")
    assert busy_swarm.digest("maths") == before
    assert texts(view, ".versions button") == ["Back to adapters/maths/1?"]
    view.click(".versions button")
    view.wait("document.querySelector('.versions li:has(.now) b').textContent === 'adapters/maths/1'")
    assert busy_swarm.digest("maths") != before
    assert "rolled back" in texts(view, ".ledger tbody tr")[0]


def test_a_training_that_runs_has_its_curve(view: Browser, busy_swarm: Swarm) -> None:
    now = LearningState(busy_swarm.folder)
    now.begin("maths")
    for step in range(1, 4):
        now.show(Metric(step, "train", {"loss": 1.0 / step}))
    now.show(Metric(3, "validation", {"loss": 0.4, "accuracy": 0.75}))
    now.show(Progress("train", 1.0, 4.0, "epochs"))
    now.flush()
    go(view, "learning")
    view.wait("document.querySelector('.begin').textContent.includes('maths learns: train 25%')")
    assert "loss 0.333 at step 3, 75% of the held-out pairs right at step 3" in texts(view, ".begin p")[0]
    view.wait("document.querySelector('svg.chart')")
    assert view.do("document.querySelector('svg.chart').ariaLabel") == (
        "maths: training loss: 1.000 at step 1, 0.333 at step 3"
    )
    assert view.do("document.querySelector('.begin button').disabled") is True
    now.end()


def test_proposed_specialists_are_made_and_rejected(view: Browser, busy_swarm: Swarm) -> None:
    assert texts(view, ".card h3") == ["tax", "roses"]
    view.click("[aria-label='Make tax']")
    view.wait("document.querySelectorAll('.card').length === 1")
    view.wait("document.querySelector('.specialists').textContent.includes('tax')")
    view.click("[aria-label='Reject roses']")
    view.wait("document.querySelectorAll('.card').length === 0")
    assert "tax" in busy_swarm.models and "roses" not in busy_swarm.models


def test_every_view_fits_a_phone_and_has_a_dark_side(chromium: Browser, busy_server: Server) -> None:  # noqa: F811
    begin(chromium, busy_server.url, 360, touch=True)
    chromium.wait(READY)
    chromium.click("#swarm-open")
    fits = "[document.documentElement, document.querySelector('#view')].every(e => e.scrollWidth <= 360)"
    for name in VIEWS:
        chromium.wait("document.querySelector('#views button')")
        go(chromium, name)
        assert chromium.do(f"innerWidth === 360 && {fits}"), name
    paper = "getComputedStyle(document.querySelector('.ledger')).color"
    light = chromium.do(paper)
    chromium.open(f"{busy_server.url}/#swarm/learning", dark=True)
    wait_for(chromium, "learning")
    chromium.wait(f"{paper} !== {json.dumps(light)}")
    assert chromium.faults == []


def test_a_view_has_an_address_and_the_keyboard_reaches_all_of_it(chromium: Browser, busy_server: Server) -> None:  # noqa: F811
    begin(chromium, busy_server.url)
    chromium.open(f"{busy_server.url}/#swarm/knowledge")
    wait_for(chromium, "knowledge")
    chromium.wait("document.querySelector('ul.facts')")
    chromium.do("document.querySelector('#view').focus()")
    controls = chromium.do(
        "window.left = new Set([...document.querySelectorAll('#view button, #view input')]"
        ".filter(e => e.checkVisibility())), left.size"
    )
    for _ in range(2 * controls):
        chromium.press("Tab")
        if chromium.do("left.delete(document.activeElement), left.size") == 0:
            break
    assert chromium.do("left.size") == 0
    named = "e.textContent.trim() || e.ariaLabel || e.labels?.length"
    assert (
        chromium.do(f"[...document.querySelectorAll('#swarm button, #swarm input')].filter(e => !({named})).length")
        == 0
    )
    chromium.do("dispatchEvent(new KeyboardEvent('keydown', {code: 'KeyS', altKey: true}))")
    assert chromium.do("[document.body.dataset.pane, location.hash]") == ["chat", ""]
    assert chromium.faults == []


def test_a_user_sees_no_pairs_and_changes_nothing_of_everybody(chromium: Browser, tmp_path: Path) -> None:  # noqa: F811
    folder = team(tmp_path)
    with AsyncEngine(load_models(folder), **OPTIONS) as engine:
        opened = Swarm(folder, engine)
        populate(opened, tmp_path / "adapters")
        with Server(engine, Settings(), swarm=opened) as server:
            begin(chromium, server.url)
            chromium.wait(READY)
            chromium.click("#swarm-open")
            wait_for(chromium, "specialists")
            assert texts(chromium, "#views button") == ["Specialists", "Pathways", "Knowledge"]
            assert not texts(chromium, ".card")
            go(chromium, "knowledge")
            chromium.wait("document.querySelector('ul.facts')")
            assert not texts(chromium, "ul.facts button")
            assert "gold" not in "".join(texts(chromium, "ul.facts li"))
            chromium.call("Page.navigate", url="about:blank")
        opened.close()
    assert chromium.faults == []
