"""Objects of a schema have the properties that it names, and no others, unless it or the server says so."""

from __future__ import annotations

import json
from typing import Any

import pytest

from synthe_core.serving.api.closed_objects import closed
from tests.serving.api.scripted import Scripted, answer

A = {"type": "object", "properties": {"a": {"type": "integer"}}}
B = {"type": "object", "properties": {"b": {"type": "integer"}}}
CLOSED_A = {**A, "additionalProperties": False}
CLOSED_B = {**B, "additionalProperties": False}


@pytest.mark.parametrize(
    "schema,expected",
    [
        (A, CLOSED_A),
        ({"type": "object"}, {"type": "object"}),
        ({"type": "object", "properties": {}}, {"type": "object", "properties": {}, "additionalProperties": False}),
        ({**A, "additionalProperties": True}, {**A, "additionalProperties": True}),
        ({**A, "additionalProperties": A}, {**A, "additionalProperties": CLOSED_A}),
        ({**A, "unevaluatedProperties": True}, {**A, "unevaluatedProperties": True}),
        (
            {"type": "array", "items": A, "prefixItems": [B]},
            {"type": "array", "items": CLOSED_A, "prefixItems": [CLOSED_B]},
        ),
        ({"properties": {"x": A}}, {"properties": {"x": CLOSED_A}, "additionalProperties": False}),
        ({"anyOf": [A, B]}, {"anyOf": [CLOSED_A, CLOSED_B]}),
        ({"$defs": {"A": A}, "$ref": "#/$defs/A"}, {"$defs": {"A": CLOSED_A}, "$ref": "#/$defs/A"}),
        (
            {"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": A}},
            {"allOf": [{"$ref": "#/$defs/A"}], "$defs": {"A": CLOSED_A}},
        ),
        ({"const": A, "default": A, "enum": [A]}, {"const": A, "default": A, "enum": [A]}),
        (
            {"properties": {"properties": {"type": "object"}}},
            {"properties": {"properties": {"type": "object"}}, "additionalProperties": False},
        ),
        ({"not": A}, {"not": A}),
    ],
)
def test_objects_are_closed(schema: dict[str, Any], expected: dict[str, Any]) -> None:
    before = json.dumps(schema)
    assert closed(schema) == expected
    assert json.dumps(schema) == before


def test_a_combination_is_closed_as_a_whole() -> None:
    assert closed({"allOf": [A, B]}) == {
        "allOf": [A, B],
        "properties": {"a": {}, "b": {}},
        "additionalProperties": False,
    }
    beside = closed({**A, "anyOf": [B, {"required": ["a"]}]})
    assert beside["properties"] == {"a": {"type": "integer"}, "b": {}}
    assert beside["anyOf"] == [B, {"required": ["a"]}]
    assert beside["additionalProperties"] is False


def test_a_definition_is_open_where_it_is_combined() -> None:
    schema = {"$ref": "#/$defs/A", "properties": {"x": {"$ref": "#/$defs/A"}}, "$defs": {"A": A}}
    result = closed(schema)
    assert result["$defs"]["A"] == CLOSED_A
    assert result["properties"] == {"a": {}, "x": {"$ref": "#/$defs/A"}}
    name = result["$ref"].removeprefix("#/$open/")
    assert result["$open"][name] == A


def test_references_to_themselves_end() -> None:
    tree = {"properties": {"next": {"$ref": "#"}}, "allOf": [{"$ref": "#"}, B]}
    assert closed(tree)["additionalProperties"] is False
    chain = {f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(200)} | {"d200": A}
    result = closed({"$ref": "#/$defs/d0", "properties": {}, "$defs": chain})
    assert result["properties"] == {"a": {}}
    assert len(json.dumps(result)) < 4 * len(json.dumps(chain))


@pytest.mark.parametrize("reference", ["#/$defs/none", "http://example.org", "#/%", "", "#/a/b", 5])
def test_references_to_nothing_stay(reference: Any) -> None:
    assert closed({"$ref": reference, **A})["$ref"] == reference


@pytest.mark.parametrize("open_objects", [False, True])
def test_the_server_decides_what_a_schema_leaves_open(ask: Any, open_objects: bool) -> None:
    engine = Scripted(answer)
    client = ask(engine=engine, open_objects=open_objects)
    forms: list[dict[str, Any]] = [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": A}}},
        {"response_format": {"type": "json_object", "schema": A}},
        {"guided_json": A},
        {"structured_outputs": {"json": A}},
    ]
    for fields in forms:
        body = {"model": "m", "messages": [{"role": "user", "content": "x"}], **fields}
        assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert engine.requests[-1].json_schema == (A if open_objects else CLOSED_A)


@pytest.mark.parametrize(
    "schema,keys",
    [
        (
            {"type": "object", "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["a"]},
            {"a"},
        ),
        (
            {
                "allOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}],
                "$defs": {
                    "A": {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"]},
                    "B": {"type": "object", "properties": {"b": {"enum": [2]}}, "required": ["b"]},
                },
            },
            {"a", "b"},
        ),
    ],
)
def test_a_model_adds_no_property(ask: Any, schema: dict[str, Any], keys: set[str]) -> None:
    client = ask()
    for seed in range(3):
        body = {
            "model": "plain",
            "messages": [{"role": "user", "content": "x"}],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
            "max_tokens": 120,
            "seed": seed,
        }
        answered = client.post("/v1/chat/completions", json=body)
        assert answered.status_code == 200, answered.text
        assert set(json.loads(answered.json()["choices"][0]["message"]["content"])) == keys
