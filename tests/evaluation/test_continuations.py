"""Contexts and continuations whose boundary a tokenizer's merges cross, and stored answers with odd line breaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from tokenizers import decoders, models, pre_tokenizers

from synthe_core.data.tokenizers import FileTokenizer
from synthe_core.errors import InputError, WorkError
from synthe_core.evaluation.answers import Answers
from synthe_core.evaluation.continuations import split_pairs
from synthe_core.evaluation.harness_model import Synthe
from synthe_core.evaluation.lm import EvalConfig, evaluate
from synthe_core.events import Notice, Result
from synthe_core.interop.huggingface.exporter import export_hf
from tests.evaluation.models import ATTENTION, saved, task
from tests.training.conftest import _own_folders, cache  # noqa: F401  (fixtures)

END = "<|endoftext|>"


def merging_tokenizer(normalizer: object = None) -> FileTokenizer:
    """Bytes, and one token each for `ab`, `abc`, `12` and a space with `yes`."""
    vocab = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pairs = [("a", "b"), ("ab", "c"), ("1", "2"), ("Ġ", "y"), ("Ġy", "e"), ("Ġye", "s")]
    vocab |= {a + b: len(vocab) + i for i, (a, b) in enumerate(pairs)}
    inner = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=pairs))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    inner.decoder = decoders.ByteLevel()
    if normalizer is not None:
        inner.normalizer = normalizer
    inner.add_special_tokens([END])
    return FileTokenizer(inner, "merging", end=END)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("merging") / "model", ATTENTION, merging_tokenizer())


def spelled(model: Synthe, context: str, rest: str) -> tuple[list[str], list[str]]:
    (split,) = model._split([(context, rest)])
    return tuple([model.text.spelling(token).replace("Ġ", " ") for token in part] for part in split)  # type: ignore[return-value]


def token(model: Synthe, text: str) -> int:
    return model.text.end if text == END else model.text.encode(text)[0]


def instances(*pairs: tuple[str, str], name: str | None = None) -> list[Instance]:
    return [Instance("loglikelihood", {}, pair, i, (name, 7, 1)) for i, pair in enumerate(pairs)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "context,rest,head,own",
    [
        ("xa", "c", ["x", "a"], ["c"]),
        ("xa", "b", ["x"], ["ab"]),  # one token for both: it is the continuation's
        ("xa", "bb", ["x"], ["ab", "b"]),  # merged, and as many tokens as context and a token more
        ("xab", "c", ["x"], ["abc"]),
        ("a", "b", [END], ["ab"]),  # nothing of the context is left: as an empty one
        ("ab", "c", [END], ["abc"]),
        ("No.1", "2", ["N", "o", "."], ["12"]),
        ("x ", "yes", ["x"], [" yes"]),  # the context's space goes over, as in the harness
        ("", "ab", [END], ["ab"]),
        ("  ", "ab", [END], [" ", " ", "ab"]),
        ("xa", " ", ["x", "a"], [" "]),
    ],
)
def test_the_continuation_has_every_token_that_it_changes(
    path: Path, context: str, rest: str, head: list[str], own: list[str]
) -> None:
    model = Synthe(path, device="cpu")
    assert spelled(model, context, rest) == (head, own)
    ((loglikelihood, _),) = model.loglikelihood(instances((context, rest)))
    ids = [token(model, each) for each in [*head, *own]]
    with torch.no_grad():
        logp = model.model(torch.tensor([ids[:-1]]))[0][0].log_softmax(-1)
    expected = sum(logp[at - 1, ids[at]].item() for at in range(len(head), len(ids)))
    assert loglikelihood == pytest.approx(expected, abs=1e-4) and loglikelihood < -0.1


def test_equal_to_the_harness_wherever_the_context_is_a_prefix(path: Path, tmp_path: Path) -> None:
    """And where it is not, the harness has no token to score, or leaves out those that were merged."""
    *_, last = export_hf(path, out=tmp_path / "exported")
    assert isinstance(last, Result)
    theirs = HFLM(pretrained=str(last.path), device="cpu", dtype="float32", batch_size=2, max_length=64)
    ours = Synthe(path, device="cpu", max_length=64)
    pairs = [("xa", "c"), ("xx", "b"), ("x", " yes"), ("x ", "yes"), ("", "xab"), ("a b", "12ab"), ("xa", " abc")]
    expected = theirs.loglikelihood(instances(*pairs))
    for (a, greedy), (b, ours_greedy) in zip(expected, ours.loglikelihood(instances(*pairs)), strict=True):
        assert b == pytest.approx(a, abs=1e-4) and greedy == ours_greedy
    assert theirs._encode_pair("xa", "b")[1] == []
    assert theirs._encode_pair("xa", "bb")[1] == [token(ours, "b")]
    ours.answers = Answers(None)
    assert len(ours._split([("xa", "bb")])[0].continuation) == 2


@pytest.mark.parametrize("rest,message", [("", "the continuation is empty"), ("\u200b", "leaves no token of the")])
def test_a_continuation_without_tokens_is_named(tmp_path: Path, rest: str, message: str) -> None:
    tokenizer = merging_tokenizer(tokenizers.normalizers.Replace("\u200b", ""))
    model = Synthe(saved(tmp_path / "model", tokenizer=tokenizer), device="cpu")
    with pytest.raises(InputError) as refused:
        model.loglikelihood(instances(("xa", "c"), ("xa", rest), name="letters"))
    assert "letters, document 7, choice 1: " in refused.value.message and message in refused.value.message
    assert "\n" not in refused.value.message and refused.value.hint
    with pytest.raises(InputError, match="is empty"):  # a space at the context's end is no answer either
        model.loglikelihood(instances(("xa ", "")))


def test_a_merged_choice_does_not_win_for_nothing(path: Path, tmp_path: Path) -> None:
    rows = [
        {"q": "xa", "choices": ["b", "c"], "gold": 1},
        {"q": "No.1", "choices": ["2", "3"], "gold": 1},
        {"q": "xx", "choices": ["b", "c"], "gold": 1},
    ]
    settings = {"doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
    config = {"output_type": "multiple_choice", "target_delimiter": "", "metric_list": [{"metric": "acc"}]}
    file = task(tmp_path / "tasks", "merged", rows, **settings, **config)
    options = EvalConfig(tasks=[str(file)], device="cpu", output=tmp_path / "out", log_samples=True)
    *_, done = evaluate([path], options)
    assert isinstance(done, Result) and done.path is not None
    (samples,) = done.path.parent.glob("samples_merged_*.jsonl")
    answers = [json.loads(line)["filtered_resps"] for line in samples.read_text().split("\n") if line]
    assert all(float(score) < -0.1 for choices in answers for score, _ in choices)


@pytest.mark.parametrize("place", [0, 1])
def test_a_task_with_an_empty_choice_is_reported(path: Path, tmp_path: Path, place: int) -> None:
    rows: list[dict[str, Any]] = [{"q": "xa", "choices": ["c", "d"], "gold": 0} for _ in range(2)]
    rows[place]["choices"][1] = ""
    settings = {"doc_to_text": "{{q}}", "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}"}
    file = task(tmp_path / "tasks", "hollow", rows, output_type="multiple_choice", target_delimiter="", **settings)
    said = []
    with pytest.raises(WorkError, match="1 of 1 tasks failed: hollow"):
        for event in evaluate([path], EvalConfig(tasks=[str(file)], device="cpu")):
            said += [event.message] if isinstance(event, Notice) and event.level == "warning" else []
    named = (
        "hollow, document 1, choice 1: the continuation is empty" if place else "an empty choice in its first document"
    )
    assert len(said) == 1 and named in said[0]


def test_splitting_encodes_each_text_once() -> None:
    seen: list[str] = []

    def encode(texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return [list(text.encode()) for text in texts]

    pairs = [("ab", "c"), ("ab", "d"), ("ab", "c")]
    split = split_pairs(pairs, encode, lambda tokens: tokens, 256)
    assert seen == ["abc", "ab", "abd"] and [list(each.continuation) for each in split] == [[99], [100], [99]]


ODD = ["one\u2028two", "next\u0085line", "\u2029\v\f\x1c\x1d\x1e", "return\r\nand\rfeed\n", "plain"]


def test_stored_answers_may_hold_every_line_break(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    answers = Answers(file)
    for number, text in enumerate(ODD):
        answers[str(number)] = text
    answers.close()
    with file.open("ab") as out:
        out.write(b'{"key": "cut \xff')
    again = Answers(file)
    assert [again[str(number)] for number in range(len(ODD))] == ODD and len(again) == len(ODD)
    again["more"] = 1
    again.close()
    assert len(Answers(file)) == len(ODD) + 1
