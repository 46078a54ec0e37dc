"""What of a conversation is trained on, with the templates of SmolLM2, Qwen, Llama 3, Gemma and Mistral: faults that
make masks wrong without an error."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers, processors, trainers

from synthe_core.data.chat_template import render
from synthe_core.data.conversations.example_batches import Side, example_batch
from synthe_core.data.conversations.training_text import training_text, training_tokens
from synthe_core.data.tokenizers import FileTokenizer, Tokenizer, open_tokenizer
from synthe_core.ops.cross_entropy import IGNORED
from tests.data.template_families import CHATML_TOOLS
from tests.data.templates import CHATML, GEMMA, LLAMA, MISTRAL
from tests.data.test_examples import read, write
from tests.paths import SHARED


class Family(NamedTuple):
    """A chat template, and the special tokens that it writes. end: ends an answer. begins: whether it writes <s>."""

    template: str
    end: str
    specials: tuple[str, ...]
    begins: bool


CHATML_MARKS = ("<|im_start|>", "<|im_end|>")
FAMILIES = {
    "smollm2": Family(CHATML, "<|im_end|>", CHATML_MARKS, False),
    "qwen": Family(CHATML_TOOLS, "<|im_end|>", CHATML_MARKS, False),
    "llama3": Family(LLAMA, "<|eot_id|>", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), True),
    "gemma": Family(GEMMA, "<end_of_turn>", ("<start_of_turn>", "<end_of_turn>"), True),
    "mistral": Family(MISTRAL, "</s>", ("[INST]", "[/INST]"), True),
}
QUESTIONS = ["What is 2 + 2?", "And 日本?", "Say it again.\n"]
ANSWERS = ["It is 4.", "Nihon 🙂", "Nihon,\n\nthat is it"]
CHAT = [
    {"role": role, "content": text}
    for pair in zip(QUESTIONS, ANSWERS, strict=True)
    for role, text in zip(("user", "assistant"), pair, strict=True)
]


def made_of(family: Family) -> FileTokenizer:
    """A tokenizer that merges over the place where an answer begins, as those of many models do."""
    inner = tokenizers.Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    names = ["<s>", "</s>", *(name for name in family.specials if name != "</s>")]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, special_tokens=names, show_progress=False)
    begun = [f"{before}{answer}" for answer in ANSWERS for before in ("assistant\n", "model\n", "\n\n", " ", "")]
    inner.train_from_iterator(begun * 9, trainer)
    if family.begins:  # as published, so that the begin token would be there twice
        inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    made = FileTokenizer(inner, "made", begin="<s>", end=family.end)
    made.chat_template = family.template
    made.special_tokens = {"bos_token": "<s>", "eos_token": family.end}
    return made


@pytest.fixture(params=[*FAMILIES, "smollm2 itself"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param in FAMILIES:
        return made_of(FAMILIES[request.param])
    path = SHARED / "models" / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.exists():
        pytest.skip("the model is not there")
    return open_tokenizer(str(path))


def runs_of(trained: list[bool]) -> list[tuple[int, int]]:
    """The first token and the one after the last of each run that is trained on."""
    edges = np.flatnonzero(np.diff(np.array([False, *trained, False], np.int8)))
    return [(int(begin), int(end)) for begin, end in edges.reshape(-1, 2)]


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_the_prompt_of_an_answer_has_the_tokens_that_it_has_alone(tokenizer: Tokenizer, turns: int) -> None:
    chat = CHAT[: 2 * turns]
    ids, trained = training_tokens(tokenizer, training_text(tokenizer, chat, trained="last"))
    ((begin, _),) = runs_of(trained)
    assert ids[:begin] == tokenizer.encode_marked(render(tokenizer, chat[:-1], answer=True))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_token_would_reach_over_that_place(name: str) -> None:
    """So that the test above can fail; the mark before Mistral's answers is a token."""
    tokenizer = made_of(FAMILIES[name])
    whole = tokenizer.encode_marked(render(tokenizer, CHAT[:2]))
    prompt = tokenizer.encode_marked(render(tokenizer, CHAT[:1], answer=True))
    assert (whole[: len(prompt)] == prompt) == (name == "mistral")


@pytest.mark.parametrize("name", FAMILIES)
def test_there_is_one_begin_token_where_the_template_writes_one(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = made_of(family)
    ids, trained = training_tokens(tokenizer, training_text(tokenizer, CHAT))
    assert ids.count(tokenizer.begin) == family.begins
    assert not family.begins or (ids[0] == tokenizer.begin and not trained[0])


def test_the_end_of_every_answer_is_trained_on_and_nothing_after_it(tokenizer: Tokenizer) -> None:
    """The model learns to stop, and not to write the line break that a template has after a turn."""
    ids, trained = training_tokens(tokenizer, training_text(tokenizer, CHAT))
    runs = runs_of(trained)
    assert len(runs) == 3
    for (begin, end), answer in zip(runs, ANSWERS, strict=True):
        assert ids[end - 1] in tokenizer.ends
        assert tokenizer.decode_marked(ids[begin : end - 1]).strip() == answer
    rest = tokenizer.decode_marked(ids[runs[-1][1] :])
    assert rest in ("", "\n") and not any(trained[runs[-1][1] :])


def test_what_two_sides_have_in_common_is_scored_on_neither(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Also earlier answers, where each side is a whole conversation."""
    sides = {"chosen": ANSWERS[2], "rejected": "Nihon, I think"}
    whole = {key: [*CHAT[:5], {"role": "assistant", "content": text}] for key, text in sides.items()}
    apart = {"prompt": CHAT[:5], **sides}
    examples, notices = read(write(tmp_path / "p.jsonl", [whole, apart]), "preferences", tokenizer, sequence=900)
    assert not notices and examples.keys[0] == examples.keys[1]
    prompt = tokenizer.encode_marked(render(tokenizer, CHAT[:5], answer=True))
    for number in range(2):
        batch = example_batch([(Side(examples, np.arange(2)), number)])
        assert torch.equal(batch.inputs[0, : len(prompt)], batch.inputs[1, : len(prompt)])
        assert batch.inputs[0, : len(prompt)].tolist() == prompt
        for row, answer in enumerate(sides.values()):
            scored = batch.targets[row] != IGNORED
            assert not scored[: len(prompt) - 1].any() and scored[len(prompt) - 1]
            text = tokenizer.decode_marked(batch.targets[row][scored].tolist()[:-1])
            assert text.strip() == answer


SYSTEM = {"role": "system", "content": "Be brief."}
FAULTS: dict[str, tuple[str, Any, str]] = {
    "equal sides": ("preferences", {"prompt": "a", "chosen": "b", "rejected": "b"}, "chosen and rejected are the same"),
    "an empty side": ("preferences", {"prompt": "a", "chosen": "b", "rejected": " "}, "answer 1 of the assistant is"),
    "a long side": ("preferences", {"prompt": "a", "chosen": "b" * 700, "rejected": "c"}, "tokens are more than data."),
    "an empty answer": ("conversations", {"prompt": "a", "completion": ""}, "answer 1 of the assistant is empty"),
    "a long answer": ("conversations", {"prompt": "a", "completion": "b" * 700}, "tokens are more than data.sequence"),
    "roles refused": ("conversations", {"messages": [SYSTEM, *CHAT[:2]]}, "System role not supported"),
    "turns refused": ("conversations", {"messages": [*CHAT[:2], CHAT[1]]}, "Conversation roles must alternate"),
    "an empty rating": ("ratings", {"prompt": "a", "completion": " ", "label": True}, "the answer is empty"),
}
GOOD = {
    "preferences": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "conversations": {"messages": CHAT[:2]},
    "ratings": {"prompt": "a", "completion": "b", "label": False},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_row_that_cannot_be_used_is_one_line_with_its_place(fault: str, tmp_path: Path) -> None:
    reads, row, message = FAULTS[fault]
    path = write(tmp_path / "rows.jsonl", [GOOD[reads], GOOD[reads], row])
    examples, notices = read(path, reads, made_of(FAMILIES["gemma"]))
    assert (len(examples), examples.skipped) == (2, 1)
    assert notices[0].startswith(f"{path}: 1 of 3 rows are skipped")
    assert notices[1].startswith(f"skipped: {path}, line 3") and message in notices[1]
    assert len(notices) == 2 and not any("\n" in notice for notice in notices)
