"""A remembered state: the answers are those of a text that is read, and it is never one of another text or adapter."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from synthe_core.errors import InputError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import Finished, TokenOutput
from synthe_core.inference.prefix_cache import CachedState
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.swarm.events import Answered
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.remembered_states import state_path
from synthe_core.swarm.spec import SpecialistSpec, SwarmSpec
from synthe_core.swarm.team import Swarm, SwarmRequest, open_swarm
from tests.adapters.conftest import saved
from tests.inference.conftest import engine, memory, memory_path, whole, window  # noqa: F401

OPTIONS: dict[str, Any] = {"max_state_bytes": 1 << 28, "cache_bytes": 1 << 24}
TEXT = "The red door is open, and the green one is shut. " * 12


@pytest.fixture
def notes(folder: SwarmFolder) -> SwarmFolder:
    """A specialist with an adapter and a document."""
    (folder.path / "notes.md").write_text(f"# Doors\n\n{TEXT}")
    adapter = Path(folder.resolve(str(folder.spec.specialists["python"].adapter)))
    folder.add("notes", SpecialistSpec(prompt="You know.", documents=["notes.md"]), str(adapter))
    return folder


def answer(swarm: Swarm, text: str = "which door?", **more: Any) -> Answered:
    given = {"max_tokens": 24, "sampling": {"temperature": 0}, "specialist": "notes", **more}
    *_, end = swarm.answer(SwarmRequest([{"role": "user", "content": text}], **given))
    assert isinstance(end, Answered)
    return end


def set_remember(folder: SwarmFolder, name: str, value: str) -> None:
    text = folder.spec_path.read_text()
    folder.spec_path.write_text(text.replace(f"  {name}:\n", f"  {name}:\n    remember: {value}\n"))
    folder.reload()


def test_the_answer_is_that_of_the_text_read_anew(notes):
    with open_swarm(notes, **OPTIONS) as swarm:
        state = swarm.remembered.get("notes")
        assert state is not None and state.was_read and state.tokens > 500
        first = answer(swarm)
        assert first.drafts[0].num_remembered_tokens == state.tokens
        assert first.json()["drafts"][0]["remembered_tokens"] == state.tokens
        assert answer(swarm, specialist="python").json()["drafts"][0].keys() == {"specialist", "confidence"}
    with open_swarm(notes, **{**OPTIONS, "cache_bytes": 0}) as swarm:  # another process, which caches nothing
        state = swarm.remembered.get("notes")
        assert state is not None and not state.was_read
        again = answer(swarm)
        assert again.text == first.text and again.num_cached_tokens == state.tokens
        facts = answer(swarm, user="ann", text="I live in Paris.")
        known = answer(swarm, user="ann", text="Where do I live?")
        assert known.num_cached_tokens == facts.num_cached_tokens == state.tokens  # facts stand behind it
        keyed = answer(swarm, owner="0" * 32)
        assert keyed.num_cached_tokens == state.tokens and keyed.text == first.text
    set_remember(notes, "notes", "false")
    with open_swarm(notes, **{**OPTIONS, "cache_bytes": 0}) as swarm:
        assert swarm.remembered.get("notes") is None
        anew = answer(swarm)
        assert anew.num_cached_tokens == 0 and anew.text == first.text
        assert anew.drafts[0].signals == first.drafts[0].signals  # mean log-probability and confidence, to the bit


@pytest.mark.parametrize("name", ["memory", "window", "whole"])
def test_logits_are_those_of_a_text_that_is_read_in_one_piece(engine, name):  # noqa: F811
    text = tuple((TEXT + "User: which?\n").encode())
    config = engine.engine.config
    length = 500 // config.aligned(engine.models[name].alignment(config.chunk_size)).alignment
    length *= config.aligned(engine.models[name].alignment(config.chunk_size)).alignment

    def outputs(model: AsyncEngine) -> list[Any]:
        request = Request(name, text, max_tokens=12, sampling=SamplingParams(temperature=0), logprobs=5)
        return list(model.submit(request))

    with AsyncEngine([engine.models[name]], max_state_bytes=1 << 28, cache_bytes=0) as plain:
        expected = outputs(plain)
        session = plain.read(name, text[: length + 1])
        assert session.pending.tolist() == [text[length]] and session.state.position.tolist() == [length]
        weights = plain.registry.resolve(name).fingerprints.weights
        state = CachedState(weights, text[:length], session.state, resumable=True)
        plain.call(lambda: plain.prefix_cache.pin("it", state)).result()
        pinned = outputs(plain)
        tokens = lambda events: [each for each in events if isinstance(each, TokenOutput)]  # noqa: E731
        assert tokens(pinned) == tokens(expected) and len(tokens(pinned)) == 12
        ends = [each for events in (expected, pinned) for each in events if isinstance(each, Finished)]
        assert [each.num_cached_tokens for each in ends] == [0, length]
        plain.call(lambda: plain.prefix_cache.unpin("it")).result()
        assert outputs(plain)[-1].num_cached_tokens == 0


def test_a_swapped_adapter_has_a_state_of_its_own(notes, base, tmp_path):
    with open_swarm(notes, **OPTIONS) as swarm:
        old, before = answer(swarm), swarm.remembered.get("notes")
        target = notes.versions("notes").next_path()
        other = saved(tmp_path / "other", base, {"rank": 4}, seed=9).path
        shutil.copytree(other, target)
        notes.versions("notes").set_current(notes.versions("notes").named(target))
        assert swarm.follow_adapters() == ["notes"]
        new, after = answer(swarm), swarm.remembered.get("notes")
        assert after.weights != before.weights and after.was_read and after.tokens == before.tokens
        assert new.text != old.text and new.drafts[0].num_remembered_tokens == after.tokens
    set_remember(notes, "notes", "false")
    with open_swarm(notes, **OPTIONS) as swarm:
        assert answer(swarm).text == new.text
    set_remember_back = notes.spec_path.read_text().replace("    remember: false\n", "")
    notes.spec_path.write_text(set_remember_back)
    notes.reload()
    notes.versions("notes").set_current(notes.spec.specialists["notes"].adapter)
    with open_swarm(notes, **OPTIONS) as swarm:  # the old version again: the file is the new one's, and is not used
        assert swarm.remembered.get("notes").was_read and answer(swarm).text == old.text


def same(path: Path, content: bytes) -> bool:
    """Whether a file has the tensors of another, whatever the order of its metadata."""
    return path.read_bytes()[-512:] == content[-512:] and path.stat().st_size == len(content)


def test_a_state_that_does_not_belong_is_made_again(notes, folder):
    with open_swarm(notes, **OPTIONS) as swarm:
        text = answer(swarm).text
    path = state_path(notes.path, "notes")
    whole_file = path.read_bytes()
    for damaged in (b"", whole_file[:-8], whole_file[:-64] + bytes(4) + whole_file[-60:], b"\xff" * 100):
        path.write_bytes(damaged)
        with open_swarm(notes, **OPTIONS) as swarm:
            assert swarm.remembered.get("notes").was_read and answer(swarm).text == text
        assert same(path, whole_file)
    (notes.path / "notes.md").write_text(TEXT.replace("red", "blue"))
    with open_swarm(notes, **OPTIONS) as swarm:
        assert swarm.remembered.get("notes").was_read
        other = answer(swarm).text
    assert not same(path, whole_file)
    set_remember(notes, "notes", "false")
    with open_swarm(notes, **OPTIONS) as swarm:
        assert answer(swarm).text == other


def test_a_prompt_alone_can_be_remembered(folder):
    folder.add("law", SpecialistSpec(prompt=TEXT, remember=True))
    with open_swarm(folder, **OPTIONS) as swarm:
        assert swarm.remembered.get("python") is None
        assert (
            answer(swarm, specialist="law").drafts[0].num_remembered_tokens == swarm.remembered.get("law").tokens > 500
        )


def test_a_specialist_that_the_context_cannot_hold_is_unavailable(notes):
    from synthe_core.swarm.models import load_models

    models = load_models(notes)
    models[0].max_length = 256
    with AsyncEngine(models, **OPTIONS) as running:
        swarm = Swarm(notes, running)
        message = swarm.unavailable["notes"].message
        swarm.close()
    assert message.startswith("notes cannot read its prompt and documents: 6")
    assert message.endswith("tokens, and base reads 256")


def test_a_specialist_that_cannot_be_taken_up_leaves_the_others(notes):
    with open_swarm(notes, **OPTIONS) as swarm:
        (notes.path / "empty.txt").write_text(TEXT)
        notes.add("empty", SpecialistSpec(documents=["empty.txt"]))
        (notes.path / "empty.txt").write_text("")
        with pytest.raises(InputError, match="empty cannot read its document"):
            swarm.follow_specialists()
        assert "empty" not in swarm.names and answer(swarm).text
        (notes.path / "empty.txt").write_text(TEXT)
        assert swarm.follow_specialists() == ["empty"]
        assert answer(swarm, specialist="empty").drafts[0].num_remembered_tokens > 500


def test_documents_may_be_of_any_kind(folder):
    (folder.path / "a.html").write_text(f"<html><body><h1>Doors</h1><p>{TEXT}</p></body></html>")
    folder.add("page", SpecialistSpec(documents=["a.html"]))
    with open_swarm(folder, **OPTIONS) as swarm:
        assert "<p>" not in swarm.writer.prompts["page"].system and "# Doors" in swarm.writer.prompts["page"].system
        assert answer(swarm, specialist="page").drafts[0].num_remembered_tokens > 500
    far = {"url": "https://a.example/v1", "model": "m", "remember": True}
    with pytest.raises(ValueError, match="remembers no state"):
        SwarmSpec.model_validate({"base": "x", "specialists": {"far": far}})


def test_torch_reads_the_state_as_a_session(notes):
    from synthe_core.model.session import Session

    with open_swarm(notes, **OPTIONS) as swarm:
        resolved = swarm.engine.registry.resolve(swarm.models["notes"])
        with resolved.model.activate(resolved.adapter), torch.inference_mode():
            session = Session.load(state_path(notes.path, "notes"), resolved.model.model)
        assert int(session.state.position[0]) == swarm.remembered.get("notes").tokens
