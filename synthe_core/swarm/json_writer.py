"""A model that answers a question with JSON of a given schema."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from synthe_core.data import chat_template
from synthe_core.errors import WorkError
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.outputs import whole_text
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams

JsonWriter = Callable[[str, Mapping[str, Any]], Any]
"""From a question and a JSON schema to a value of the schema. WorkError where the model ends before the value does."""

CLIENT = "knowledge"
"""The client of the engine that these requests belong to: those of users get their equal share beside it."""


def json_writer(engine: AsyncEngine, model: str, max_tokens: int = 400) -> JsonWriter:
    """Asks `model` of a running engine, greedily."""

    def write(question: str, schema: Mapping[str, Any]) -> Any:
        served = engine.registry.resolve(model).model
        tokenizer = chat_template.with_template(served.tokenizer)
        text = chat_template.render(tokenizer, [{"role": "user", "content": question}])
        tokens = tuple(tokenizer.encode_marked(text))
        request = Request(
            model,
            tokens,
            served.fitting(max_tokens, len(tokens)),
            SamplingParams(temperature=0.0),
            json_schema=schema,
            return_logprob=False,
            client=CLIENT,
        )
        answer = whole_text(engine.submit(request), model)
        try:
            return json.loads(answer)
        except ValueError:
            raise WorkError(f"{model} wrote no whole JSON in {max_tokens} tokens", "allow more tokens") from None

    return write
