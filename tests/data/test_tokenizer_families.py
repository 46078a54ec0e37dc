"""Token ids are those of transformers: the tokenizers of published families, and those in the shared data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from synthe_core.data.chat_template import render
from synthe_core.data.tokenizers import Tokenizer, load_tokenizer
from tests.data.conversations import TEXTS, conversations
from tests.data.template_families import CHATML_TOOLS, SHORT_ROLES, TURNS_OF_PARTS
from tests.data.tokenizer_families import FAMILIES, save
from tests.paths import SHARED

PLAIN = [each for each in TEXTS if not any(mark in each for mark in ("<s>", "<|im", "<think", "<tool"))]
SHARED_TOKENIZERS = [
    "data/tokenizers/gpt2", "data/tokenizers/gpt-neox-20b", "cases/13", "cases/14", "cases/18/hf_bos",
    "cases/18/hf_eos", "cases/18/hf_generation", "cases/18/hf_loopctl", "cases/18/hf_toolsnone",
]  # fmt: skip


def compare(ours: Tokenizer, theirs: Any) -> None:
    """On texts, bare and as a prompt, and on 200 conversations by three templates."""
    for text in PLAIN:
        bare = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ours.encode_marked(text) == bare
        prompt = theirs(text)["input_ids"]
        begin = [] if ours.begin is None else [ours.begin]
        assert prompt[: len(begin + bare)] == begin + bare
        assert ours.decode(bare) == theirs.decode(bare, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    for source in (CHATML_TOOLS, SHORT_ROLES, TURNS_OF_PARTS):
        ours.chat_template = theirs.chat_template = source
        for each in conversations(200):
            values = {"tools": each["tools"]}
            try:
                expected = theirs.apply_chat_template(
                    each["messages"], add_generation_prompt=each["answer"], return_dict=False, **values
                )
            except Exception:  # that it is refused here too is tested elsewhere
                continue
            text = render(ours, each["messages"], answer=each["answer"], variables=values)
            assert ours.encode_marked(text) == expected


@pytest.mark.parametrize("name", FAMILIES)
def test_families(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save(name, tmp_path)
    compare(load_tokenizer(folder), transformers.AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_session_reads_what_the_whole_conversation_reads(tmp_path: Path, name: str) -> None:
    """What follows the end of a turn has the tokens that it has in a rendering of all turns."""
    pytest.importorskip("transformers")
    tokenizer = load_tokenizer(save(name, tmp_path))
    ends = [end for end in ("<|im_end|>", "<|end|>") if len(tokenizer.encode_marked(end)) == 1]
    for end in ends:
        for text in ("\n<|im_start|>user\n hé", "a b", "  x", "\n\nx", "<|im_start|>", ""):
            whole = tokenizer.encode_marked(f"so{end}{text}")
            assert tokenizer.encode_marked(f"so{end}") + tokenizer.encode_after(end, text) == whole
    if name not in ("roberta", "wordpiece"):  # whose words begin with a space
        assert tokenizer.bytes_of(tokenizer.encode_after("\n", "a")) == b"a"


@pytest.mark.parametrize("place", SHARED_TOKENIZERS)
def test_shared_tokenizers(place: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = SHARED / place
    if not folder.is_dir():
        pytest.skip("no shared data here")
    config = folder / "tokenizer_config.json"
    options = json.loads(config.read_text()) if config.is_file() else {}
    ours = load_tokenizer(folder)
    names = {key: value for key, value in options.items() if key.endswith("_token")} or ours.named_tokens
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
    compare(ours, theirs)
