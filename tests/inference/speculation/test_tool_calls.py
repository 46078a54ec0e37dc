"""Calls with drafts: as valid as without, and the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synthe_core.data.tool_calls.format import HERMES, LLAMA, ToolFormat
from synthe_core.data.tool_calls.parser import CallPiece, ToolCallParser
from synthe_core.data.tool_calls.schema import FunctionSchema, call_schema
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.outputs import Finished
from synthe_core.inference.request import Request, ToolUse
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.inference.speculation.ngram import NgramProposer
from synthe_core.inference.speculation.proposer import Speculation
from tests.inference.conftest import GREEDY
from tests.inference.speculation.conftest import PROMPTS, clock, request_of, run, speculating, tokens

SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "codes": {"type": "array", "items": {"enum": ["alpha", "beta"]}, "minItems": 3, "maxItems": 4},
        "n": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "required": ["codes", "n"],
    "additionalProperties": False,
}


def use(form: ToolFormat, *, required: bool) -> ToolUse:
    return ToolUse(form, call_schema(form, [FunctionSchema("sort", SCHEMA)], parallel=False), required, parallel=False)


def requests_of(form: ToolFormat, sampling: SamplingParams, *, required: bool) -> list[Request]:
    more: dict[str, Any] = {"max_tokens": 160, "sampling": sampling, "seed": 7, "ignore_eos": False}
    prompts = [prompt + b' {"name": "sort", "arguments": {"codes": ["beta", "beta", "beta"' for prompt in PROMPTS]
    return [request_of(prompt, **more, tool_use=use(form, required=required)) for prompt in prompts]


def check_call(model: LoadedModel, form: ToolFormat, written: list[int]) -> None:
    parser = ToolCallParser(form)
    pieces = parser.push(model.tokenizer.decode(written)) + parser.flush()
    arguments = json.loads("".join(each.arguments for each in pieces if isinstance(each, CallPiece)))
    assert parser.num_complete == 1 and 3 <= len(arguments["codes"]) <= 4 and 0 <= arguments["n"] <= 9
    assert set(arguments["codes"]) <= {"alpha", "beta"}


@pytest.mark.parametrize("form", [HERMES, LLAMA], ids=lambda form: form.name)
@pytest.mark.parametrize("sampling", [GREEDY, SamplingParams(temperature=1)], ids=["greedy", "sampling"])
@pytest.mark.parametrize("drafts", ["ngram", "known"])
def test_a_required_call_is_valid_and_the_same(
    model: LoadedModel, form: ToolFormat, sampling: SamplingParams, drafts: str
) -> None:
    requests = requests_of(form, sampling, required=True)
    expected = {each.prompt_token_ids: tokens(run(model, [each])[0]) for each in requests}
    if drafts == "ngram":
        model.speculation = Speculation(NgramProposer(), clock=clock(), always=True)
    else:
        speculating(model, expected)
    outputs = run(model, requests)
    for request, each in zip(requests, outputs, strict=True):
        assert tokens(each) == expected[request.prompt_token_ids]
        check_call(model, form, tokens(each))
    ends = [each[-1] for each in outputs]
    accepted = sum(end.num_accepted_tokens for end in ends if isinstance(end, Finished))
    drafted = sum(end.num_drafted_tokens for end in ends if isinstance(end, Finished))
    assert 0 < accepted < drafted  # drafts that break the schema are rejected


def test_free_text_with_tools_is_the_same(model: LoadedModel) -> None:
    requests = requests_of(HERMES, SamplingParams(temperature=1), required=False)
    expected = {each.prompt_token_ids: tokens(run(model, [each])[0]) for each in requests}
    speculating(model, expected)
    for request, each in zip(requests, run(model, requests), strict=True):
        assert tokens(each) == expected[request.prompt_token_ids]
