"""The report as a value, as JSON lines and as a page; two models beside each other; a text as it streams through."""

from __future__ import annotations

import base64
import json
import re
import zlib
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest
import torch

from synthe_core.data.tokenizers import ByteTokenizer
from synthe_core.errors import InputError
from synthe_core.introspection.compare import align_reports, differences
from synthe_core.introspection.page import page
from synthe_core.introspection.report import LONGEST, Report, block_range, examine, groups, lines, token_text
from synthe_core.introspection.watch import watch
from synthe_core.layers.trace import GROUPS
from synthe_core.model.language_model import LanguageModel
from synthe_core.model.spec import ModelSpec

TEXT = "def fib(n):\n    return fib(n - 1) </script> é"
TOKENIZER = ByteTokenizer()


def model(seed: int = 0, **keys: Any) -> LanguageModel:
    torch.manual_seed(seed)
    block = ["momentum", {"type": "delta", "heads": 2}, "kalman", {"type": "experts", "experts": 4, "hidden": 8}]
    return LanguageModel(ModelSpec(width=16, blocks=2, block=block, **keys), TOKENIZER.vocab_size).eval()


def report(**keys: Any) -> Report:
    return examine(model(), TOKENIZER, TEXT, name="small", **keys)


def unpacked(html: str) -> Any:
    match = re.search(r'id="data">([A-Za-z0-9+/=]+)</script>', html)
    assert match
    return json.loads(zlib.decompress(base64.b64decode(match[1])))


def test_layers_and_groups_are_parsed() -> None:
    assert block_range("0-1,3", 5) == {0, 1, 3}
    assert block_range(None, 2) == {0, 1}
    for wrong in ("a", "1-", "3-1", "0-5", "", "-1"):
        with pytest.raises(InputError):
            block_range(wrong, 5)
    assert groups(["gates,memory", "depth"]) == {"gates", "memory", "depth"}
    assert groups([]) == set(GROUPS)
    with pytest.raises(InputError, match="unknown group of figures 'gate'"):
        groups(["gate"])
    seen = report(layers="1", what=["gates"])
    assert {each.group for each in seen.series} == {"gates"}
    assert {each.path.split(".")[1] for each in seen.series} == {"1"}
    assert seen.reads == []
    assert {each.path.split(".")[1] for each in report(layers="1").reads} == {"1"}


def test_facts_are_those_of_the_model() -> None:
    facts = report().facts
    small = model()
    assert facts["parameters"] == small.parameter_count()
    assert facts["active_parameters"] == small.active_parameter_count() < small.parameter_count()
    assert facts["sparsity"] == pytest.approx(1 - small.active_parameter_count() / small.parameter_count())
    assert facts["tokens"] == len(TEXT.encode())


def test_lines_are_json_and_complete() -> None:
    seen = report(tokens=[4])
    events = [json.loads(json.dumps(line, allow_nan=False)) for line in lines(seen)]
    kinds = [line["event"] for line in events]
    assert kinds[0] == "model"
    assert kinds.count("token") == len(TEXT.encode())
    assert kinds.count("series") == len(seen.series)
    assert kinds.count("reads") == len(seen.reads) == 4
    assert kinds.count("fate") == 2  # one for each delta; a momentum has no keys
    beta = next(line for line in events if line["event"] == "series" and line["name"] == "beta")
    expected = next(each for each in seen.series if each.name == "beta")
    np.testing.assert_allclose(beta["rows"], expected.rows, rtol=1e-6)
    reads = next(line for line in events if line["event"] == "reads")
    assert reads["error"] < 1e-5
    token = next(line for line in events if line["event"] == "token" and line["index"] == 1)
    assert token["text"] == "e"
    assert token["bits"] > 0
    assert len(token["next"]) == 5


def test_the_page_is_self_contained() -> None:
    seen = report()
    html = page([seen])

    class Links(HTMLParser):
        urls: list[str]

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.urls += [value for name, value in attrs if name in ("src", "href", "srcset")]

    links = Links()
    links.urls = []
    links.feed(html)
    assert links.urls == []
    for word in ("http://", "https://", "fetch(", "import(", "@import", "url(", "XMLHttpRequest"):
        assert word not in html
    assert "{{" not in html
    data = unpacked(html)
    assert "".join(data["tokens"]) != ""
    assert data["ids"] == seen.ids
    strips = {(strip["path"], strip["name"]): strip for strip in data["models"][0]["strips"]}
    for each in seen.series:
        strip = strips[each.path, each.name]
        levels = np.frombuffer(base64.b64decode(strip["levels"]), np.uint8).reshape(strip["rows"], -1).astype(float)
        values = strip["low"] + strip["span"] * levels / 255
        assert values.shape == each.rows.shape
        np.testing.assert_allclose(values, each.rows, atol=strip["span"] / 500 + 1e-6)


def test_names_are_escaped_in_the_page() -> None:
    seen = examine(model(), TOKENIZER, TEXT, name="<script>alert(1)</script>")
    assert page([seen]).count("<script>alert") == 0


def test_two_models_of_one_text() -> None:
    first, second = report(), examine(model(1), TOKENIZER, TEXT, name="other")
    one, two = align_reports(first, second)
    gain = next(each for each in two.series if each.name == "advantage")
    np.testing.assert_allclose(gain.rows[0, 1:], one.predictions.bits[1:] - two.predictions.bits[1:])
    rows = {(each.path, each.name): each for each in differences(first, second)}
    assert rows["blocks.0.1", "beta"].rms > 0
    assert all(each.rms == 0 for each in differences(first, first))
    assert len(unpacked(page([one, two]))["models"]) == 2
    with pytest.raises(InputError, match="tokenize the text differently"):
        align_reports(first, examine(model(), TOKENIZER, "another text"))


@pytest.mark.parametrize("piece", [1, 7, 1000])
def test_streamed_input_equals_input_read_at_once(piece: int) -> None:
    small = model(depth={"min": 1})
    assert small.router is not None
    small.router.thresholds.fill_(0.0)
    seen = examine(small, TOKENIZER, TEXT)
    moments = list(watch(small, TOKENIZER, TEXT, piece=piece))
    assert moments[-1].first + len(moments[-1].pieces) == moments[-1].total == len(seen.ids)
    np.testing.assert_allclose(np.concatenate([each.bits for each in moments]), seen.predictions.bits, rtol=1e-4)
    for each in seen.series:
        if each.name not in ("beta", "added", "depth", "signal.surprise"):
            continue
        expected = np.full(len(seen.ids), np.nan)
        expected[slice(None) if each.at is None else each.at] = each.rows.mean(0)
        key = (each.path, each.learner, each.name)
        got = np.concatenate([m.figures.get(key, np.full(len(m.pieces), np.nan)) for m in moments])
        np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4)


def test_unsuitable_texts_are_refused() -> None:
    with pytest.raises(InputError, match="no text"):
        examine(model(), TOKENIZER, "")
    with pytest.raises(InputError, match="tokens"):
        examine(model(), TOKENIZER, "x" * (LONGEST + 1))
    with pytest.raises(InputError, match="there is no token 99"):
        report(tokens=[99])


def test_tokens_are_printed_readably() -> None:
    assert [token_text(TOKENIZER, token) for token in (97, 0xC3, TOKENIZER.end)] == ["a", "⟨c3⟩", "⟨end⟩"]
