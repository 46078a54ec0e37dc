"""The server against its own OpenAPI document: never a 500, never a hang, and every answer as the document says."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.serving.api.app import App
from synthe_core.serving.api.endpoints import ENDPOINTS, document
from synthe_core.serving.api.settings import Settings

LIMITS = Settings(max_prompt=400, max_tokens=24, max_n=2, max_choices=4, max_body=100_000)
HELD_TO = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
]


def operations() -> list[Any]:
    """Every endpoint, with the number of examples: more for those with a body."""
    return [
        pytest.param(each.path, each.method, 8 if each.body else 2, id=f"{each.method} {each.path}")
        for each in ENDPOINTS
    ]


def fuzz(engine: AsyncEngine, path: str, method: str, examples: int) -> set[int]:
    """Sends valid and invalid requests of the document, mostly with an existing model; returns the statuses."""
    schema = schemathesis.openapi.from_dict(document())
    schema.app = App(engine, LIMITS)
    operation = schema[path][method]
    statuses: set[int] = set()

    @settings(
        max_examples=examples,
        deadline=20_000,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(
        case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    )
    def run(case: Any) -> None:
        if (
            isinstance(case.body, dict)
            and case.meta.generation.mode is GenerationMode.POSITIVE
            and "model" in case.body
        ):
            case.body["model"] = "plain"
        answer = case.call()
        statuses.add(answer.status_code)
        # A body that is too large is refused before anything in it is looked at.
        case.validate_response(answer, checks=HELD_TO[:-1] if answer.status_code == 413 else HELD_TO)

    run()
    return statuses


@pytest.mark.parametrize("path,method,examples", operations())
def test_generated_requests_get_valid_responses(engine: AsyncEngine, path: str, method: str, examples: int) -> None:
    assert not {status for status in fuzz(engine, path, method, examples) if status >= 500}


@pytest.mark.slow
@pytest.mark.parametrize("path,method,examples", operations())
def test_many_requests_get_valid_responses(engine: AsyncEngine, path: str, method: str, examples: int) -> None:
    assert not {status for status in fuzz(engine, path, method, 50 * examples) if status >= 500}
