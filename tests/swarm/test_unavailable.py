"""A specialist whose files are gone is unavailable, and the others answer."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from synthe_core.errors import InputError
from synthe_core.swarm.events import Answered, Routed
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.spec import SpecialistSpec
from synthe_core.swarm.status import status
from synthe_core.swarm.team import Swarm, SwarmRequest, open_swarm
from tests.swarm.test_team import OPTIONS, set_keys


@pytest.fixture
def broken(folder: SwarmFolder, tmp_path: Path) -> SwarmFolder:
    """A swarm whose `law` has lost its document, and whose `python` its adapter."""
    document = tmp_path / "terms.txt"
    document.write_text("The notice period is two weeks.")
    folder.add("law", SpecialistSpec(capabilities=["contracts"], documents=[str(document)]))
    document.unlink()
    shutil.rmtree(folder.path / "adapters" / "python")
    return folder


def ask(swarm: Swarm, specialist: str | None = None) -> Answered:
    request = SwarmRequest([{"role": "user", "content": "a contract in python"}], specialist=specialist, max_tokens=2)
    routed, *_, end = swarm.answer(request)
    assert isinstance(routed, Routed) and isinstance(end, Answered)
    assert not {"law", "python"} & {each.name for each in routed.decision.candidates}
    return end


def test_the_others_answer_and_it_says_why_it_does_not(broken: SwarmFolder) -> None:
    with open_swarm(broken, **OPTIONS) as swarm:
        assert swarm.unavailable.keys() == {"law", "python"} and not swarm.unavailable.keys() & set(swarm.names)
        assert ask(swarm).by not in swarm.unavailable and ask(swarm, "maths").by == "maths"
        with pytest.raises(InputError, match="law is unavailable: law cannot read its document"):
            ask(swarm, "law")
        assert swarm.follow_adapters() == []
    faults = {each["name"]: each["unavailable"] for each in status(broken)["specialists"]}
    assert faults == {
        "law": "no such document: terms.txt",
        "python": "no such adapter: 1",
        "maths": None,
        "history": None,
    }


def test_the_base_is_the_fallback_where_the_fallback_is_gone(broken: SwarmFolder) -> None:
    set_keys(broken, fallback="law", threshold="1")
    with open_swarm(broken, **OPTIONS) as swarm:
        assert ask(swarm).by == "base"
