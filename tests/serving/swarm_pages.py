"""A swarm to look at in the dashboard: its base writes HTML and a sentence that is wrong, and its data are hostile."""

from __future__ import annotations

from pathlib import Path

import tokenizers

from synthe_core.data.tokenizers import FileTokenizer
from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.spec import SpecialistSpec
from tests.evaluation.models import saved
from tests.swarm.test_team import set_keys

IMAGE = "<img src=x onerror=window.hit=1>"
WRONG = "The capital of France is Lyon."
WORDS = [*(f"{IMAGE} é𝄞{'!' * n} " for n in range(1, 4)), *(f"{WRONG} It has {n} bridges. " for n in range(2, 24)), "?"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def sentences() -> FileTokenizer:
    """Tokens that are whole sentences: most of them say that Lyon is the capital of France."""
    vocab = {word: i for i, word in enumerate(WORDS)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="?"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Split(" ", "isolated")
    made = FileTokenizer(inner, "sentences")
    made.chat_template = TEMPLATE
    return made


def team(path: Path) -> SwarmFolder:
    """Three specialists, one of them with an adapter; all answer together."""
    base = saved(path / "base", tokenizer=sentences())
    swarm = SwarmFolder.create(path / "team", str(base))
    hostile = {"description": f"{IMAGE} writes code", "prompt": "You write Python."}
    swarm.add("python", SpecialistSpec(capabilities=["python", f"{IMAGE} debugging"], **hostile))
    swarm.add("maths", SpecialistSpec(capabilities=["arithmetic", "algebra"], prompt="You count."))
    swarm.add("history-of-long-names-in-use", SpecialistSpec(capabilities=["wars", "kings"], prompt="You know."))
    return set_keys(swarm, margin="1", threshold="0", explore="0", max_specialists="3", min_pairs="2")
