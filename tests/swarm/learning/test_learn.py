"""Learning end to end on a small model: pairs are learned, measured, promoted or refused, and rolled back."""

from __future__ import annotations

import json
from threading import Event as Stop
from typing import Any

import pytest

from synthe_core.data.conversations.prepare import Reader
from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError, Interrupted
from synthe_core.events import Metric, Notice, Result
from synthe_core.storage.checkpoint import Checkpoint
from synthe_core.storage.claim import Busy, claim
from synthe_core.swarm.feedback.pairs import Pairs
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.knowledge.personal_data import forget
from synthe_core.swarm.learning.learn import learn, roll_back
from synthe_core.swarm.learning.plan import plan_of
from synthe_core.swarm.learning.rows import preference_row, prompt_of
from synthe_core.swarm.learning.state import learning_now
from synthe_core.swarm.opening import open_store
from synthe_core.swarm.prompting import PromptWriter
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.team import open_swarm
from tests.evaluation.models import saved as saved_model
from tests.interop.gguf.test_exporter import attention, exported
from tests.swarm.learning.conftest import KEYS, TEXT, approve, rows
from tests.swarm.test_team import OPTIONS, answered, said, set_keys


def outcomes(events: Any) -> list[dict[str, Any]]:
    (result,) = [each for each in events if isinstance(each, Result)]
    return result.values["outcomes"]


def states(pairs: Any, ids: list[int]) -> set[str]:
    return {pairs.get(id).state.value for id in ids}


def contents(folder: Any, adapter: str) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in sorted((folder.path / adapter).iterdir())}


def test_good_pairs_are_promoted_poisoned_ones_are_not_and_a_roll_back_restores_the_bits(team, opened, cache):
    pairs, learned = opened
    first = approve(pairs, rows(range(40)))
    events = list(learn(team))
    (outcome,) = outcomes(events)
    assert (outcome["event"], outcome["adapter"], outcome["parent"]) == ("promoted", "adapters/maths/1", None)
    held_out = outcome["figures"]["held_out"]
    assert held_out["pairs"] == 8 and held_out["accuracy"] == {"before": 0.5, "after": 1.0}
    assert any(isinstance(each, Metric) and each.phase == "validation" for each in events)
    assert states(pairs, first) == {"learned"} and team.adapter("maths") == team.path / "adapters/maths/1"
    assert len(learned.of("maths", "trained")) == 32 and len(learned.of("maths", "held_out")) == 8
    before = contents(team, "adapters/maths/1")
    assert Checkpoint.open(team.path / "adapters/maths/1").digest == outcome["digest"]  # it names its base itself

    poisoned = approve(pairs, rows(range(100, 140), flipped=True))
    (refused,) = outcomes(learn(team))
    assert refused["event"] == "refused" and any("held out earlier" in why for why in refused["why"])
    assert refused["figures"]["earlier"]["pairs"] == 8
    assert states(pairs, poisoned) == {"refused"} and team.versions("maths").current == "adapters/maths/1"
    assert contents(team, "adapters/maths/1") == before and not (team.path / "adapters/maths/2").exists()

    second = approve(pairs, rows(range(200, 230)))
    (again,) = outcomes(learn(team))
    assert (again["event"], again["adapter"], again["parent"]) == ("promoted", "adapters/maths/2", "adapters/maths/1")
    assert len(team.versions("maths").facts("adapters/maths/2").replayed) == 12  # half of 24
    assert roll_back(team, "maths")["adapter"] == "adapters/maths/1"
    assert states(pairs, second) == {"refused"} and contents(team, "adapters/maths/1") == before
    assert roll_back(team, "maths") == {"specialist": "maths", "adapter": None, "digest": None}
    assert team.adapter("maths") is None and learned.of("maths", "trained") == []
    with pytest.raises(InputError, match="learned nothing that could be rolled back"):
        roll_back(team, "maths")
    events = [(each["event"], each.get("adapter"), each.get("parent")) for each in team.ledger()[1:]]
    assert events == [
        ("promoted", "adapters/maths/1", None),
        ("refused", None, "adapters/maths/1"),
        ("promoted", "adapters/maths/2", "adapters/maths/1"),
        ("rolled back", "adapters/maths/1", None),
        ("rolled back", None, None),
    ]
    assert not (team.path / "learning").exists() and not list((cache / "examples").glob("*")), "rows of users are left"


def test_an_adapter_that_was_brought_is_trained_further(team, opened):
    pairs, _ = opened
    approve(pairs, rows(range(30)), specialist="python")
    approve(pairs, rows(range(30, 60)), specialist="maths+python")
    (outcome,) = outcomes(learn(team))  # a pair is learned once
    assert outcome["specialist"] == "python" and outcome["parent"] == "adapters/python/1"
    assert outcome["adapter"] == "adapters/python/2" and outcome["figures"]["held_out"]["wins"] > 0.6
    config = json.loads((team.path / "adapters/python/2/adapter_config.json").read_text())
    assert config["r"] == 4
    assert roll_back(team, "python")["digest"] == team.ledger()[0]["digest"]


def test_a_quantised_base_is_learned_on_twice_and_answers_with_it(tmp_path):
    """A GGUF file that is decoded as it is stored: what is measured and what answers is the same arithmetic."""
    base = exported(saved_model(tmp_path / "ours", attention(), sequence=512), tmp_path / "base.gguf", quantize="q8_0")
    folder = SwarmFolder.create(tmp_path / "team", str(base))
    folder.add("maths", SpecialistSpec(capabilities=["arithmetic"], prompt="You count."))
    (folder.path / "canary.txt").write_text(TEXT)
    set_keys(folder, **KEYS | {"max_canary_increase": "9"})
    store = open_store(folder)
    pairs = Pairs(store)
    for number, first in enumerate((0, 100), 1):
        approve(pairs, rows(range(first, first + 30)))
        (outcome,) = outcomes(learn(folder))
        assert (outcome["event"], outcome["adapter"]) == ("promoted", f"adapters/maths/{number}"), outcome
    store.close()
    with open_swarm(folder, **OPTIONS) as swarm:
        assert swarm.engine.models["base"].weights == "as_stored"
        later = answered(swarm, said("What comes after 3?", specialist="maths"))[1].text
        roll_back(folder, "maths")
        assert swarm.follow_adapters() == ["maths"]
        assert answered(swarm, said("What comes after 3?", specialist="maths"))[1].text != later


def test_few_pairs_wait_unless_they_are_to_be_learned_now(team, opened):
    pairs, _ = opened
    approve(pairs, rows(range(8)))
    events = list(learn(team))
    assert outcomes(events) == [] and [each.message for each in events if isinstance(each, Notice)] == [
        "maths has 8 of 10 approved pairs that are enough to learn from"
    ]
    with pytest.raises(InputError, match="8 approved pairs to learn, of which 2 are held out"):
        list(learn(team, specialist="maths", now=True))
    with pytest.raises(InputError, match="unknown specialist 'mats'"):
        list(learn(team, specialist="mats"))
    set_keys(team, min_held_out="2")
    (outcome,) = outcomes(learn(team, specialist="maths", now=True))
    assert outcome["specialist"] == "maths"


def test_an_adapter_that_spoils_other_text_is_refused(team, opened):
    set_keys(team, max_canary_increase="0")
    approve(opened[0], rows(range(30)))
    (outcome,) = outcomes(learn(team))
    assert outcome["event"] == "refused" and team.adapter("maths") is None
    (why,) = outcome["why"]
    assert "bits per byte" in why and team.ledger()[-1]["why"] == [why]


def test_checked_pairs_stand_beside_those_held_out_earlier(team, opened):
    """A first batch that is poisoned has no earlier one to be compared with, but pairs that somebody checked."""
    pairs, _ = opened
    lines = [{"prompt": p, "chosen": c, "rejected": r} for p, c, r in rows(range(500, 510))]
    (team.path / "checked.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    set_keys(team, pairs="checked.jsonl")
    approve(pairs, rows(range(30), flipped=True))
    (outcome,) = outcomes(learn(team))
    assert outcome["event"] == "refused" and outcome["figures"]["earlier"]["pairs"] == 10
    (team.path / "checked.jsonl").write_text('{"prompt": "x"}\n')
    approve(pairs, rows(range(30, 60)))
    with pytest.raises(InputError, match=r"checked.jsonl:1 is no pair"):
        list(learn(team))


def test_one_specialist_s_failure_keeps_no_other_from_learning(team, opened):
    pairs, _ = opened
    ids = approve(pairs, rows(range(12)), specialist="python")  # enough to begin, and too few to measure on
    set_keys(team, min_held_out="4")
    approve(pairs, rows(range(100, 130)))
    events = []
    with pytest.raises(InputError, match="python has 12 approved pairs to learn, of which 3 are held out"):
        for event in learn(team):
            events.append(event)
    assert [(each["specialist"], each["event"]) for each in outcomes(events)] == [("maths", "promoted")]
    assert states(pairs, ids) == {"approved"}


def test_learning_that_is_stopped_goes_on_where_it_was(team, opened):
    pairs, _ = opened
    approve(pairs, rows(range(40)))
    stop = Stop()
    with pytest.raises(Interrupted):
        for event in learn(team, stop=stop):
            if isinstance(event, Metric) and event.phase == "validation":
                assert learning_now(team)["specialist"] == "maths"
                stop.set()
    assert learning_now(team) is None and team.adapter("maths") is None
    events = list(learn(team))
    assert any("resuming from step" in each.message for each in events if isinstance(each, Notice))
    assert outcomes(events)[0]["event"] == "promoted"


def test_one_process_learns_at_a_time(team, opened):
    approve(opened[0], rows(range(40)))
    with claim(team.path / "learning", "learning in"), pytest.raises(Busy, match="another process is learning in"):
        list(learn(team))


def test_a_failure_is_in_the_ledger_and_the_pairs_wait(team, opened):
    pairs, _ = opened
    ids = approve(pairs, rows(range(40)))
    set_keys(team, canary="gone.txt")
    with pytest.raises(InputError, match=r"gone\.txt"):
        list(learn(team))
    assert team.ledger()[-1]["event"] == "failed" and states(pairs, ids) == {"approved"}
    set_keys(team, canary="canary.txt")
    assert outcomes(learn(team))[0]["event"] == "promoted"


def test_prompts_stay_on_their_side_and_no_pair_of_a_deleted_user_returns(team, opened):
    pairs, learned = opened
    approve(pairs, rows(range(30)))
    approve(pairs, rows(range(50, 60)), user="bob")
    list(learn(team))
    earlier = {pairs.get(id).prompt for id in learned.of("maths", "held_out")}
    before = {pairs.get(id).prompt for id in learned.of("maths", "trained")}
    approve(pairs, [(prompt, "One hundred.", "None.") for prompt in sorted(earlier)[:3] + sorted(before)[:3]])
    approve(pairs, rows(range(100, 130)))
    spec = team.spec
    plan = plan_of("maths", None, pairs, learned, spec.learning, spec.promotion)
    trained = {pairs.get(id).prompt for id in (*plan.trained, *plan.replayed)}
    held = {pairs.get(id).prompt for id in (*plan.held_out, *plan.earlier)}
    assert not trained & held and earlier <= held and len(plan.earlier) == 8
    forget(pairs.store, "bob")
    plan = plan_of("maths", None, pairs, learned, spec.learning, spec.promotion)
    assert {pairs.get(id).user for id in (*plan.replayed, *plan.earlier, *plan.trained)} == {"ann"}


def test_a_pair_is_read_as_the_specialist_reads_a_request(team, opened):
    (pair,) = rows([3])
    ids = approve(opened[0], [pair])
    specialist = team.specialist("maths")
    row = preference_row(opened[0].get(ids[0]), specialist)
    ((example,),) = Reader("preferences", ByteTokenizer(), 500).read([("here", row)])
    served = PromptWriter(ByteTokenizer(), specialist.prompt)([{"role": "user", "content": pair[0]}]).token_ids
    for text, answer in zip(example.texts, pair[1:], strict=True):
        assert tuple(text.ids[: len(served)]) == served and text.trained[len(served) :].all()
        assert not text.trained[: len(served)].any() and answer in bytes(text.ids[:-1].tolist()).decode()
    assert prompt_of("x", team.specialist("maths"))[0] == {"role": "system", "content": "You count."}
