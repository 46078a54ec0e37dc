"""The harness's requests answered by a checkpoint."""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance

from synthe_core.data.tokenizer_config import CHAT
from synthe_core.data.tokenizers import ByteTokenizer, FileTokenizer, load_tokenizer
from synthe_core.errors import InputError
from synthe_core.evaluation import registration
from synthe_core.evaluation.answers import Answers, request_key
from synthe_core.evaluation.harness_model import Synthe
from tests.evaluation.models import ATTENTION, DELTA, choices, saved
from tests.interop.huggingface.models import add_tokenizer
from tests.paths import ROOT
from tests.processes import run_program
from tests.training.conftest import _own_folders, cache  # noqa: F401  (fixtures)


def instances(kind: str, *arguments: Any) -> list[Instance]:
    return [Instance(kind, {}, each, n) for n, each in enumerate(arguments)]  # type: ignore[arg-type]


def nats(model: Synthe, tokens: list[int], first: int) -> float:
    """-log p of tokens[first:] given those before."""
    with torch.no_grad():
        logp = model.model(torch.tensor([tokens[:-1]]))[0][0].log_softmax(-1)
    return -sum(logp[at - 1, tokens[at]].item() for at in range(first, len(tokens)))


@pytest.fixture
def model(tmp_path: Path) -> Synthe:
    return Synthe(saved(tmp_path / "model"), device="cpu")


def test_context_and_continuation_are_split_as_in_the_harness(model: Synthe) -> None:
    pairs = [("a river ", "sea"), ("a river", " sea"), ("", "sea"), ("a river", " rain"), ("ünï", "cödé")]
    results = model.loglikelihood(instances("loglikelihood", *pairs))
    for (context, rest), (loglikelihood, _) in zip(pairs, results, strict=True):
        head = list(context.encode()) or [256]
        first = len(head) - context.endswith(" ")
        assert loglikelihood == pytest.approx(-nats(model, head + list(rest.encode()), first), abs=1e-4)
    assert results[0][0] == pytest.approx(results[1][0], abs=1e-5)  # the space belongs to the continuation
    for context, rest in pairs[:2] + pairs[3:]:
        theirs = super(Synthe, model)._encode_pair(context, rest)
        (ours,) = model._split([(context, rest)])
        assert (list(ours.context), list(ours.continuation)) == theirs


def test_whole_texts(model: Synthe) -> None:
    text = "the river runs to the sea " * 9
    (loglikelihood,) = model.loglikelihood_rolling(instances("loglikelihood_rolling", (text,)))
    assert loglikelihood == pytest.approx(-nats(model, [256, *text.encode()], 1), abs=1e-3)
    assert model.limit is None and model.longer == 1  # recurrent: it runs as it is
    assert model.loglikelihood_rolling(instances("loglikelihood_rolling", ("",))) == [0.0]


def test_attention_reads_long_texts_in_windows(tmp_path: Path) -> None:
    model = Synthe(saved(tmp_path / "model", ATTENTION), device="cpu")
    text = list(("the river runs to the sea " * 6).encode())  # 156 tokens, and windows of 64
    (loglikelihood,) = model.loglikelihood_rolling(instances("loglikelihood_rolling", (bytes(text).decode(),)))
    all_of_it = [256, *text]
    expected = nats(model, all_of_it[:65], 1) + nats(model, all_of_it[64:129], 1)
    expected += nats(model, all_of_it[156 - 64 : 157], 157 - 28 - (156 - 64))
    assert model.limit == 64 and loglikelihood == pytest.approx(-expected, abs=1e-3)
    (pair,) = model.loglikelihood(instances("loglikelihood", (bytes(text).decode(), "!?")))
    assert pair[0] == pytest.approx(-nats(model, [*text[-63:], *b"!?"], 62), abs=1e-4)
    (pair,) = model.loglikelihood(instances("loglikelihood", ("a", bytes(text).decode())))
    expected = (
        nats(model, [*b"a", *text][:65], 1) + nats(model, text[63:128], 1) + nats(model, text[156 - 65 :], 65 - 28)
    )
    assert pair[0] == pytest.approx(-expected, abs=1e-3)
    assert Synthe(tmp_path / "model", device="cpu", max_length=1000).limit == 1000


def test_prefix_tokens(tmp_path: Path) -> None:
    add_tokenizer(tmp_path / "t")
    inner = load_tokenizer(tmp_path / "t")._inner  # type: ignore[attr-defined]
    tokenizer = FileTokenizer(inner, "t", begin="<s>", end="<|stop|>")
    path = saved(tmp_path / "model", DELTA, tokenizer)
    begin, end = tokenizer.begin, tokenizer.end
    for prefix, before in (("auto", [begin]), ("begin", [begin]), ("end", [end]), ("none", [])):
        model = Synthe(path, device="cpu", prefix=prefix)
        ids = tokenizer.encode("times is")
        assert model.tok_encode("times is") == before + ids
        assert model.tok_encode("times is", add_special_tokens=False) == ids
        (score,) = model.loglikelihood(instances("loglikelihood", ("times", " is")))
        assert score[0] == pytest.approx(
            -nats(model, before + ids, len(before) + len(tokenizer.encode("times"))), abs=1e-4
        )
        assert model.prefix_token_id == begin  # of an empty context
    assert (model.tokenizer.bos_token, model.tokenizer.eos_token) == ("<s>", "<|stop|>")
    with pytest.raises(InputError, match="unknown prefix 'bos'"):
        Synthe(path, device="cpu", prefix="bos")
    with pytest.raises(InputError, match="no token that begins"):
        Synthe(saved(tmp_path / "bytes"), device="cpu", prefix="begin")


def test_a_chat_template_is_used_and_its_markers_are_tokens(tmp_path: Path) -> None:
    add_tokenizer(tmp_path / "t")
    template = (
        "{{ bos_token }}{% for m in messages %}<|turn|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}"
        "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
    )
    (tmp_path / "t" / CHAT).write_text(template)
    tokenizer = load_tokenizer(tmp_path / "t" / "tokenizer.json")
    assert tokenizer.chat_template == template
    model = Synthe(saved(tmp_path / "model", DELTA, tokenizer), device="cpu")
    assert model.text.chat_template == template == model.chat_template(True)
    plain = model.tok_encode("<|turn|>user: the sea")
    text = model.apply_chat_template([{"role": "user", "content": "the sea"}])
    assert text == "<|turn|>user: the sea<|turn|>assistant:"
    turn = tokenizer._inner.token_to_id("<|turn|>")  # type: ignore[attr-defined]
    assert turn not in plain and model.tok_encode(text).count(turn) == 2
    assert (
        model.apply_chat_template([{"role": "user", "content": "x"}], add_generation_prompt=False) == "<|turn|>user: x"
    )
    bare = Synthe(saved(tmp_path / "bare"), device="cpu")
    with pytest.raises(InputError, match="no chat template"):
        bare.apply_chat_template([{"role": "user", "content": "x"}])


def test_texts_are_written_by_the_settings_of_each_request(model: Synthe) -> None:
    settings = [{"until": ["x"], "max_gen_toks": 5}, {"until": "x", "max_gen_toks": 3, "do_sample": False}]
    texts = model.generate_until(instances("generate_until", *(("a river", each) for each in settings)))
    assert texts[0].encode()[:3] == texts[1].encode()[:3] or "\ufffd" in texts[0]
    drawn = {"until": [], "max_gen_toks": 6, "do_sample": True, "temperature": 1.0}
    many = model.generate_until(instances("generate_until", *[("a river", drawn)] * 4))
    assert len(set(many)) > 1  # several samples of one request are not one sample several times
    again = Synthe(model.opened.path, device="cpu", batch_size=1)
    assert again.generate_until(instances("generate_until", *[("a river", drawn)] * 4)) == many
    with pytest.raises(InputError, match="unknown generation setting 'temprature'"):
        model.generate_until(instances("generate_until", ("a", {"temprature": 1.0})))


def test_cached_answers_are_not_computed(model: Synthe, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    pairs = [("a river", " sea"), ("a river", " rain")]
    model.answers = Answers(file)
    first = model.loglikelihood(instances("loglikelihood", *pairs))
    model.answers.close()
    with file.open("a") as out:
        out.write('{"key": "cut o')
    other = Synthe(model.opened.path, device="cpu")
    other.answers = Answers(file)
    assert other.loglikelihood(instances("loglikelihood", *pairs, ("more", " text")))[:2] == first
    assert other.reader.counts.requested == len("more text") - 1
    other.answers.close()
    reopened = Answers(file)
    assert len(reopened) == 3 and request_key("loglikelihood", ("more", " text")) in reopened
    reopened.close(keep=False)
    assert not file.exists()
    assert other.digest() == model.digest() != Synthe(model.opened.path, device="cpu", max_length=9).digest()


def test_invalid_arguments(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such checkpoint"):
        Synthe(tmp_path / "none")
    with pytest.raises(InputError, match="the tokenizer has 257 tokens, and the model knows 99"):
        Synthe(saved(tmp_path / "small", vocab=99), device="cpu")
    path = saved(tmp_path / "model")
    with pytest.raises(InputError, match="no batch size: '0'"):
        Synthe(path, device="cpu", batch_size="0")
    with pytest.raises(InputError, match="unknown device 'gpu'"):
        Synthe(path, device="gpu")
    assert Synthe(path, device="cuda:7", batch_size="auto").device  # the harness's default need not be there


def test_the_harness_registers_the_name() -> None:
    entry = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["torch.backends"]
    assert entry["synthe"] == "synthe_core.evaluation.registration:autoload"
    from lm_eval.api.registry import get_model

    registration.autoload()
    registration.autoload()
    assert get_model("synthe") is Synthe
    assert get_model("dummy") is not None  # and all of its own


@pytest.mark.slow
def test_the_harness_own_command(tmp_path: Path) -> None:
    """`lm-eval run --model synthe` in a process of its own, with our entry point as pip would install it."""
    facts = tmp_path / "packages" / "synthe-0.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: synthe\nVersion: 0\n")
    (facts / "entry_points.txt").write_text("[torch.backends]\nsynthe = synthe_core.evaluation.registration:autoload\n")
    choices(tmp_path / "tasks")
    path = saved(tmp_path / "model")
    options = ["--tasks", "rivers", "--include_path", tmp_path / "tasks", "--batch_size", "auto"]
    done = run_program(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "run",
            "--model",
            "synthe",
            "--model_args",
            f"path={path}",
            *map(str, options),
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "packages"), str(ROOT)]),
            "HF_HUB_OFFLINE": "1",
        },
    )
    assert done.returncode == 0, done.stderr
    assert "|rivers|" in done.stdout and "synthe ({'path':" in done.stdout


def test_bytes_are_a_tokenizer_like_any_other(model: Synthe) -> None:
    assert isinstance(model.text, ByteTokenizer) and model.tokenizer.eos_token == "<|endoftext|>"
    assert model.eot_token_id == model.prefix_token_id == 256 and model.tok_encode("é") == [0xC3, 0xA9]
