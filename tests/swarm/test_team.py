"""A swarm that answers on a real engine: routed, parallel, streamed, recorded, rated."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.inference.request import Busy, ContextLengthExceeded
from synthe_core.inference.scheduler_config import ALIGNMENT
from synthe_core.model.language_model import LanguageModel
from synthe_core.recipe.schema import Recipe
from synthe_core.storage.checkpoint import save, weights
from synthe_core.storage.manifest import Manifest
from synthe_core.swarm.checking.claim_states import claim_states
from synthe_core.swarm.events import Answered, AnswerToken, DraftToken, Routed
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.status import pathways, status
from synthe_core.swarm.team import Swarm, SwarmRequest, open_swarm

OPTIONS: dict[str, Any] = {"max_state_bytes": 1 << 28, "cache_bytes": 1 << 24}


@pytest.fixture
def swarm(folder: SwarmFolder) -> Iterator[Swarm]:
    with open_swarm(folder, **OPTIONS) as opened:
        yield opened


def set_keys(folder: SwarmFolder, **changes: str) -> SwarmFolder:
    """The folder with other values in its swarm.yaml, by `key: value`."""
    text = folder.spec_path.read_text()
    for key, value in changes.items():
        (old,) = [line for line in text.splitlines() if line.strip().startswith(f"{key}: ")]
        text = text.replace(old, f"{old.partition(key)[0]}{key}: {value}")
    folder.spec_path.write_text(text)
    folder.reload()
    return folder


def said(text: str, **more: Any) -> SwarmRequest:
    given = {"max_tokens": 12, "seed": 3, "sampling": {"temperature": 0.9}, **more}
    return SwarmRequest([{"role": "user", "content": text}], **given)


def answered(swarm: Swarm, request: SwarmRequest) -> tuple[list[Any], Answered]:
    *events, end = swarm.answer(request)
    assert isinstance(events[0], Routed) and isinstance(end, Answered)
    assert "".join(each.text for each in events if isinstance(each, AnswerToken)) == end.text
    return events, end


def test_one_specialist_streams_its_answer(swarm):
    events, end = answered(swarm, said("python", specialist="python"))
    tokens = [each for each in events if isinstance(each, AnswerToken)]
    assert len(tokens) > 3 and not [each for each in events if isinstance(each, DraftToken)]
    assert (end.by, end.reason, end.num_output_tokens) == ("python", "length", 12)
    assert events[0].decision.why == "python was addressed"
    stored = swarm.record.answers.get(end.answer_id)
    assert (stored.text, stored.specialists, stored.request) == (end.text, ("python",), "python")
    assert stored.digests == {"python": swarm.digest("python")} and stored.success is None
    _, other = answered(swarm, said("python", specialist="maths"))
    assert other.text != end.text


def test_several_run_together_and_each_says_what_it_says_alone(folder):
    folder = set_keys(folder, margin="1", threshold="0", explore="0", max_specialists="3")
    with open_swarm(folder, **OPTIONS) as swarm:
        events, end = answered(swarm, said("what is it?"))
        assert len(events[0].decision.specialists) == len(end.drafts) == 3
        texts = {name: "" for name in ("python", "maths", "history")}
        order = []
        for each in events:
            if isinstance(each, DraftToken):
                texts[each.specialist] += each.text
                order.append(each.specialist)
        assert sum(a != b for a, b in pairwise(order)) > 5  # in turns, not one after another
        for draft in end.drafts:
            alone = answered(swarm, said("what is it?", specialist=draft.specialist))[1]
            assert draft.text == texts[draft.specialist] == alone.text
        best = max(end.drafts, key=lambda each: each.confidence)
        assert end.text == best.text and end.by == best.specialist and end.confidence == best.confidence
        assert end.num_output_tokens == 36


def test_the_base_writes_one_answer_of_the_drafts(folder):
    folder = set_keys(folder, margin="1", threshold="0", explore="0", type="write")
    with open_swarm(folder, **OPTIONS) as swarm:
        _, end = answered(swarm, said("what is it?"))
        assert end.by == "base" and len(end.drafts) == 2 and end.num_output_tokens == 36
        assert answered(swarm, said("what is it?", synthesis="best"))[1].by != "base"
        with pytest.raises(InputError, match="unknown synthesis 'wirte'"):
            list(swarm.answer(said("what?", synthesis="wirte")))


def test_one_text_is_drawn_from_all_of_them(folder):
    folder = set_keys(folder, margin="1", threshold="0", explore="0", type="fuse")
    with open_swarm(folder, **OPTIONS) as swarm:
        events, end = answered(swarm, said("what is it?"))
        names = events[0].decision.specialists
        assert len(names) == 2 and end.by == "+".join(names) and end.num_output_tokens == 12
        assert sum(isinstance(each, AnswerToken) for each in events) > 3
        alone = [answered(swarm, said("what is it?", specialist=name))[1].text for name in names]
        assert end.text not in alone
        swarm.rate(end.answer_id, 1.0)
        assert swarm.record.records.overall(end.by).mean > 0.5
        assert swarm.record.pathways.weight(*names) > 0


def test_what_nobody_can_goes_to_the_fallback(folder):
    folder = set_keys(folder, threshold="1", explore="0")
    with open_swarm(folder, **OPTIONS) as swarm:
        events, end = answered(swarm, said("hello"))
        assert end.by == "base" and not events[0].decision.specialists
    folder = set_keys(folder, fallback="history")
    with open_swarm(folder, **OPTIONS) as swarm:
        assert answered(swarm, said("hello"))[1].by == "history"


def test_ratings_change_confidence_router_and_pathways(folder):
    folder = set_keys(folder, margin="1", threshold="0", explore="0")
    with open_swarm(folder, **OPTIONS) as swarm:
        for _ in range(6):
            _, end = answered(swarm, said("count the apples"))
            swarm.rate(end.answer_id, 1.0, right="maths")
        decision = answered(swarm, said("count the apples"))[0][0].decision
        assert decision.candidates[0].name == "maths" and decision.candidates[0].observations == 6
        first = swarm.record.records.overall(end.by).mean
        assert first > 0.8 and end.confidence > 0.5
        swarm.rate(end.answer_id, 0.0)
        assert swarm.record.records.overall(end.by).mean < first
        with pytest.raises(InputError, match="no answer has the id"):
            swarm.rate("ans_0", 1.0)
        with pytest.raises(InputError, match="no answer has the id"):
            swarm.rate(end.answer_id, 1.0, user="somebody else")
        with pytest.raises(InputError, match="unknown specialist 'mats'"):
            swarm.rate(end.answer_id, 1.0, right="mats")
    facts = status(folder)
    assert (facts["answers"], facts["rated"]) == (7, 6) and facts["calibration_error"] is not None
    assert facts["specialists"][1]["name"] == "maths" and sum(each["answers"] for each in pathways(folder)) == 6
    with open_swarm(folder, **OPTIONS) as again:
        assert answered(again, said("count the apples"))[0][0].decision.candidates[0].name == "maths"


@pytest.mark.parametrize("context", [64, 96])
def test_a_base_may_have_a_short_context(tmp_path, context):
    block = [{"type": "attention", "heads": 2}, {"type": "mlp", "hidden": 32}]
    values = {"width": 16, "blocks": 2, "block": block, "positions": context}
    recipe = Recipe.model_validate({"model": values, "data": {"sequence": context}})
    model = LanguageModel(recipe.model, 257)
    facts: dict[str, Any] = {"manifest": Manifest(), "tokenizer": ByteTokenizer()}
    save(tmp_path / "short", recipe=recipe, vocab=257, tensors=weights(model), **facts)
    folder = SwarmFolder.create(tmp_path / "team", str(tmp_path / "short"))
    folder.add("maths", SpecialistSpec(capabilities=["arithmetic, " * 8], prompt="Sum."))
    (tmp_path / "long.txt").write_text("word " * context)
    with pytest.raises(InputError, match="law cannot read its prompt and documents: "):
        folder.add("law", SpecialistSpec(documents=[str(tmp_path / "long.txt")]))
    with open_swarm(folder, **OPTIONS) as swarm:
        assert swarm.running and swarm.router.route("arithmetic " * 40)[0].answering
        known = swarm.recollection.knowledge
        known.add("", "the office", "opens at", "9:00")
        assert len(swarm.recollection.recall("", "When does the office open?").block) <= context // 4
        _, end = answered(swarm, said("1+1?", max_tokens=400))
        assert end.num_prompt_tokens + end.num_output_tokens <= context + 1
        for text in ("x" * (context + 1), "x" * 1_000_000):
            with pytest.raises(ContextLengthExceeded, match=f"longer than the {context} tokens"):
                answered(swarm, said(text))
        states = claim_states(swarm.served("base"), [("the office opens at nine. " * 9, "it opens at ten. " * 9)])
        assert states.shape == (1, 16)


def test_documents_are_read_once(folder, tmp_path):
    (folder.path / "notes.txt").write_text("The red door is open. " * 30)
    folder.add("notes", SpecialistSpec(documents=["notes.txt"]))
    with open_swarm(folder, **OPTIONS) as swarm:
        _, end = answered(swarm, said("which door?", specialist="notes"))
        assert 600 < end.num_cached_tokens == swarm.remembered.get("notes").tokens
        rest = len("\nUser: which door?\nAssistant: ")
        assert end.num_prompt_tokens - end.num_cached_tokens <= rest + ALIGNMENT
    (folder.path / "notes.txt").write_bytes(b"\xff\xfe")
    with open_swarm(folder, **OPTIONS) as swarm:
        assert "notes cannot read its document" in swarm.unavailable["notes"].message


def test_facts_of_a_user_stand_in_their_prompts_alone(swarm):
    list(swarm.answer(said("I live in Paris.", user="ann", conversation="one")))
    facts = lambda user: next(swarm.answer(said("Where do I live?", user=user))).facts  # noqa: E731
    assert "Paris" in facts("ann")[0] and facts("bob") == () and facts("") == ()
    answer = swarm.record.answers.newest(1)[0]
    assert answer.user == "ann" and answer.conversation == "one"
    check = swarm.recollection.check("ann", "You live in London.")
    assert check and check[0]["stated"] == "London" and swarm.recollection.check("bob", "You live in London.") == []


def test_knowledge_can_be_turned_off(folder):
    folder = set_keys(folder, enabled="false")
    with open_swarm(folder, **OPTIONS) as swarm:
        list(swarm.answer(said("I live in Paris.", user="ann", conversation="one")))
        assert next(swarm.answer(said("Where do I live?", user="ann"))).facts == ()
        assert swarm.recollection.check("ann", "You live in London.") == []


def test_a_cancelled_answer_leaves_nothing(swarm):
    events = swarm.answer(said("python", specialist="python", max_tokens=2000))
    next(events), next(events)
    events.close()
    assert swarm.record.answers.count() == 0
    assert answered(swarm, said("python"))[1].text


def test_errors_are_the_engine_s_own(folder):
    with open_swarm(folder, max_num_seqs=1, max_waiting=0, **OPTIONS) as swarm:
        with pytest.raises(InputError, match="no request in these messages"):
            list(swarm.answer(SwarmRequest([{"role": "system", "content": "x"}])))
        with pytest.raises(InputError, match="unknown specialist 'pyton'"):
            list(swarm.answer(said("x", specialist="pyton")))
        running = swarm.answer(said("python", specialist="python", max_tokens=4000))
        next(running), next(running)
        with pytest.raises(Busy):
            list(swarm.answer(said("maths", specialist="maths")))
        running.close()


def test_many_threads_ask_at_once(swarm):
    def ask(number: int) -> tuple[str, str]:
        name = ("python", "maths", "history")[number % 3]
        return name, answered(swarm, said("same", specialist=name, user=f"user {number}"))[1].text

    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(ask, range(24)))
    assert len(set(texts)) == 3 and swarm.record.answers.count() == 24
