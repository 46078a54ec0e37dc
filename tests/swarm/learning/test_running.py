"""A served swarm takes up what is learned while it answers: no error, and every answer is one version's, whole."""

from __future__ import annotations

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from synthe_core.swarm.answers import Answer
from synthe_core.swarm.events import Answered
from synthe_core.swarm.feedback.feedback import Feedback
from synthe_core.swarm.learning.background import BackgroundLearning, command_of
from synthe_core.swarm.learning.learn import learn, roll_back
from synthe_core.swarm.learning.plan import Plan
from synthe_core.swarm.learning.promotion import Promotions
from synthe_core.swarm.record import Record
from synthe_core.swarm.team import open_swarm
from synthe_core.swarm.watcher import Watcher
from tests.adapters.conftest import saved
from tests.swarm.learning.conftest import approve, rows
from tests.swarm.test_team import OPTIONS, answered, said, set_keys

LONG = 300.0  # seconds, after which a test fails that would wait for ever


def until(condition: Any) -> None:
    end = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def promote(team: Any, learned: Any, base: Any, path: Any, name: str = "maths") -> str:
    plan = Plan(name, team.versions(name).current, (), (), (), ())
    return Promotions(team, learned).promote(plan, path, base, {}).adapter


def test_answers_change_with_the_version_and_return_with_a_roll_back(team, opened, base, tmp_path):
    path = saved(tmp_path / "new", base, {"rank": 3}, seed=8).path
    with open_swarm(team, **OPTIONS) as swarm:
        for name in ("maths", "python"):  # one without an adapter, and one that has one
            request = said("count", specialist=name, max_tokens=40)
            first, digest = answered(swarm, request)[1].text, swarm.digest(name)
            assert not swarm.follow_adapters()
            running = swarm.answer(request)
            begun = [next(running) for _ in range(3)]
            adapter = promote(team, opened[1], base, path, name)
            assert swarm.follow_adapters() == [name] and swarm.running.adapters[name] == adapter
            second = answered(swarm, request)[1].text
            assert second != first and swarm.digest(name) != digest
            *_, end = [*begun, *running]
            assert isinstance(end, Answered) and end.text == first, "it has begun before"
            assert swarm.record.answers.get(end.answer_id).digests == {name: digest}
            roll_back(team, name)
            assert swarm.follow_adapters() == [name] and swarm.digest(name) == digest
            assert answered(swarm, request)[1].text == first
            with open_swarm(team, **OPTIONS) as again:
                assert again.digest(name) == digest


def test_a_version_that_cannot_be_read_leaves_the_old_one(team, opened, base, tmp_path):
    path = saved(tmp_path / "new", base, {"rank": 3}, seed=8).path
    said_lines: list[str] = []
    with open_swarm(team, **OPTIONS) as swarm:
        request = said("count", specialist="python")
        first = answered(swarm, request)[1].text
        adapter = team.path / promote(team, opened[1], base, path, "python")
        weights = (adapter / "adapter_model.safetensors").read_bytes()
        (adapter / "adapter_model.safetensors").write_bytes(weights[:100])
        watcher = Watcher(swarm, BackgroundLearning(team, swarm.store, ["false"]), said_lines.append)
        watcher.look(), watcher.look()
        assert len(said_lines) == 1 and "adapters" in said_lines[0]
        assert answered(swarm, request)[1].text == first
        (adapter / "adapter_model.safetensors").write_bytes(weights)
        watcher.look()
        assert said_lines[1:] == [f"python answers with {team.versions('python').current} from now on"]
        assert answered(swarm, request)[1].text != first


def test_what_fails_ends_no_other_work(team, monkeypatch):
    """A database that is locked, for example, which is no error of ours."""
    lines: list[str] = []
    learning: list[float] = []

    def locked() -> bool:
        raise OperationalError("SELECT 1", {}, RuntimeError("database is locked"))

    with open_swarm(team, **OPTIONS) as swarm:
        background = BackgroundLearning(team, swarm.store, ["false"])
        monkeypatch.setattr(swarm, "follow_ratings", locked)
        monkeypatch.setattr(background, "consider", lambda seconds, wanted: learning.append(seconds))
        watcher = Watcher(swarm, background, lines.append)
        watcher.look(), watcher.look()
    assert len(lines) == 1 and "ratings" in lines[0] and "locked" in lines[0]
    assert len(learning) == 2


def test_a_swarm_learns_by_itself_while_sixteen_clients_stream(team, opened):
    """Pairs arrive, a process learns, the gate promotes, the swap happens under traffic: nobody sees an error, and
    each answer is the old version's or the new one's."""
    pairs, _ = opened
    texts: dict[str, set[str]] = {}
    with open_swarm(team, **OPTIONS) as swarm:
        stop, promoted = threading.Event(), lambda: team.versions("maths").current is not None

        def client(number: int) -> int:
            count, after = 0, 0
            while after < 2 and not stop.is_set():
                after += swarm.running.adapters["maths"] is not None
                end = answered(swarm, said("count", specialist="maths", user=f"user {number}"))[1]
                digest = swarm.record.answers.get(end.answer_id).digests["maths"]
                texts.setdefault(digest, set()).add(end.text)
                count += 1
            return count

        learning = BackgroundLearning(team, swarm.store)
        with Watcher(swarm, learning), ThreadPoolExecutor(16) as pool:
            approve(pairs, rows(range(40)))
            until(lambda: learning.is_running)  # it begins while nobody asks for anything
            clients = [pool.submit(client, number) for number in range(16)]
            try:
                until(lambda: promoted() or not learning.is_running)
                counts = [each.result(LONG) for each in clients]
            finally:
                stop.set()
        assert promoted() and min(counts) >= 2
        assert len(texts) == 2 and all(len(each) == 1 for each in texts.values())
    assert [each["event"] for each in team.ledger()] == ["added", "promoted"]
    assert team.ledger()[-1]["figures"]["held_out"]["accuracy"]["after"] > 0.5


def test_a_server_learns_when_it_is_idle_and_only_new_pairs(team, opened, tmp_path):
    pairs, _ = opened
    log = tmp_path / "calls"
    program = [sys.executable, "-c", f"open({str(log)!r}, 'a').write('x')"]
    assert command_of(team)[1:] == ["-m", "synthe_core.swarm.learning", str(team.path)]
    set_keys(team, idle_seconds="5")
    learning = BackgroundLearning(team, pairs.store, program)
    approve(pairs, rows(range(9)))
    assert not learning.consider(10.0)
    approve(pairs, rows(range(9, 12)))
    assert not learning.consider(4.0) and learning.consider(5.0)
    until(lambda: not learning.is_running)
    assert not learning.consider(10.0), "the same pairs are not tried twice"
    approve(pairs, rows(range(12, 13)))
    assert learning.consider(10.0)
    until(lambda: not learning.is_running)
    assert log.read_text() == "xx"
    approve(pairs, rows(range(13, 14)))
    set_keys(team, automatic="false")
    assert not learning.consider(10.0)


def test_a_server_that_stops_ends_its_learning(team, opened):
    pairs, _ = opened
    approve(pairs, rows(range(12)))
    learning = BackgroundLearning(team, pairs.store, [sys.executable, "-c", "import time; time.sleep(1000)"])
    assert learning.consider(10.0) and learning.is_running
    learning.close()
    assert not learning.is_running


def test_ratings_of_another_process_reach_a_running_swarm(team):
    with open_swarm(team, **OPTIONS) as swarm:
        end = answered(swarm, said("count the apples"))[1]
        swarm.feedback.rate(end.answer_id, 1.0, "", "maths")
        assert not swarm.follow_ratings(), "its own are known"
        end = answered(swarm, said("count the pears"))[1]
        before = swarm.router.estimator.models["maths"].observations
        with open_swarm(team, **OPTIONS) as other:  # as the command line does, with a connection of its own
            record = Record(other.store, team.spec)
            Feedback(other.store, teach=record.rate).rate(end.answer_id, 0.0, "", "python")
        assert swarm.record.answers.get(end.answer_id).success == 0.0
        assert swarm.follow_ratings() and not swarm.follow_ratings()
        assert swarm.router.estimator.models["maths"].observations == before + 1
        assert len(swarm.record.ratings) == 2
        swarm.record.answers.add(Answer("x", "", "", "?", "no", ("base",), "base", "", 0.5))
        assert not swarm.follow_ratings()


@pytest.mark.parametrize("specialist", ["maths"])
def test_learning_by_hand_reaches_a_running_swarm(team, opened, specialist):
    approve(opened[0], rows(range(40)))
    with open_swarm(team, **OPTIONS) as swarm:
        request = said("What comes after 3?", specialist=specialist)
        first = answered(swarm, request)[1].text
        list(learn(team))
        assert swarm.follow_adapters() == [specialist] and answered(swarm, request)[1].text != first
