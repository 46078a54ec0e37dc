"""Measures calls of tools with a published model: docs/results/tools.md.

python -m tests.agents.measure_tools valid MODEL [--requests 200] [--first 0]
python -m tests.agents.measure_tools functions MODEL --data glaive_toolcall_en_demo.json [--adapter RUN]
python -m tests.agents.measure_tools arithmetic MODEL [--adapter RUN] [--attempts N]
python -m tests.agents.measure_tools attempts MODEL
python -m tests.agents.measure_tools write FILE
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs

from synthe_core.agents.agent import Agent
from synthe_core.agents.choice import choose
from synthe_core.agents.python_tool import PythonTool
from synthe_core.agents.run import AgentLimits
from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.data.conversations.rows import Conversation, parse
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings

WORDS = "city date count name color unit price query limit user topic level size mode kind place".split()  # noqa: SIM905
AT_ONCE = 8


def random_schema(draw: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of finite texts: what cannot end within the limit of tokens is no fault of the grammar."""
    kinds = ["string", "integer", "number", "boolean", "enum"] + (["array", "object"] if depth < 2 else [])
    match draw.choice(kinds):
        case "string":
            return {"type": "string", "maxLength": draw.randint(1, 24)}
        case "integer":
            return {"type": "integer", "minimum": draw.randint(-9, 0), "maximum": draw.randint(1, 9999)}
        case "number":
            return {"type": "number", "minimum": 0, "maximum": 100}
        case "boolean":
            return {"type": ["boolean", "null"]}
        case "enum":
            return {"enum": draw.sample([*WORDS, 1, 2.5, None, True], 3)}
        case "array":
            return {"type": "array", "items": random_schema(draw, depth + 1), "maxItems": 3}
    names = draw.sample(WORDS, draw.randint(1, 3))
    properties = {name: random_schema(draw, depth + 1) for name in names}
    return {"type": "object", "properties": properties, "required": names[: draw.randint(0, len(names))]}


def random_tools(draw: random.Random) -> list[dict[str, Any]]:
    tools = []
    for name in draw.sample(WORDS, draw.randint(1, 3)):
        schema = {"type": "array"}
        while schema.get("type") != "object":
            schema = random_schema(draw)
        tools.append({"type": "function", "function": {"name": f"get_{name}", "parameters": schema}})
    return tools


def measure_valid(model: LoadedModel, count: int, first: int) -> Iterator[str]:
    """Random tools and questions, from number `first` on: how many calls obey their schema, with `required` and with
    `auto`."""
    with AsyncEngine([model], max_num_seqs=AT_ONCE) as engine, Server(engine, Settings()) as server:
        client = httpx.Client(base_url=server.url, timeout=None)

        def one(number: int) -> tuple[str, str]:
            draw = random.Random(number)
            tools, choice = random_tools(draw), ("required", "auto")[number % 2]
            body = {
                "model": model.name,
                "messages": [
                    {"role": "user", "content": f"Call {tools[0]['function']['name']} for {draw.choice(WORDS)}."}
                ],
                "tools": tools,
                "tool_choice": choice,
                "parallel_tool_calls": number % 4 < 2,
                "max_tokens": 96,
                "seed": number,
                "temperature": (0.0, 1.0)[number // 4 % 2],
            }
            response = client.post("/v1/chat/completions", json=body).json()
            (answer,) = response["choices"]
            calls = answer["message"].get("tool_calls", [])
            schemas = {each["function"]["name"]: each["function"]["parameters"] for each in tools}
            for call in calls:
                arguments = json.loads(call["function"]["arguments"])
                if not jsonschema_rs.is_valid(schemas[call["function"]["name"]], arguments):
                    return choice, "invalid"
            return choice, "valid" if calls else answer["finish_reason"]

        with ThreadPoolExecutor(AT_ONCE) as threads:
            counts: Counter[tuple[str, str]] = Counter()
            for number, result in enumerate(threads.map(one, range(first, first + count)), start=1):
                counts[result] += 1
                if number % 10 == 0 or number == count:
                    yield f"{number}: " + ", ".join(
                        f"{choice} {kind} {n}" for (choice, kind), n in sorted(counts.items())
                    )


def measure_functions(model: LoadedModel, name: str, path: Path, count: int) -> Iterator[str]:
    """The last half of the rows: where the data calls a function, whether the model calls the same one."""
    rows = json.loads(path.read_text(encoding="utf-8"))
    cases = []
    for number, row in enumerate(rows[len(rows) // 2 :]):
        read = parse(row, f"row {number}")
        assert isinstance(read, Conversation)
        place = next((i for i, each in enumerate(read.messages) if each.get("tool_calls")), None)
        if place is not None:
            expected = read.messages[place]["tool_calls"][0]["function"]
            cases.append((read.messages[:place], read.tools or [], expected))
    with AsyncEngine([model], max_num_seqs=AT_ONCE) as engine, Server(engine, Settings()) as server:
        client = httpx.Client(base_url=server.url, timeout=None)

        def one(case: Any) -> tuple[bool, bool, bool]:
            messages, tools, expected = case
            body = {
                "model": name,
                "messages": messages,
                "tools": [{"type": "function", "function": each} for each in tools],
                "max_tokens": 128,
                "temperature": 0,
                "parallel_tool_calls": False,
            }
            (answer,) = client.post("/v1/chat/completions", json=body).json()["choices"]
            calls = answer["message"].get("tool_calls", [])
            if not calls:
                return False, False, False
            function = calls[0]["function"]
            same = function["name"] == expected["name"]
            return True, same, same and json.loads(function["arguments"]) == expected["arguments"]

        with ThreadPoolExecutor(AT_ONCE) as threads:
            results = list(threads.map(one, cases[:count]))
    for kind, values in zip(
        ("a call", "the same function", "the same arguments"), zip(*results, strict=True), strict=True
    ):
        yield f"{kind:20} {sum(values)} of {len(values)}"


def problems(count: int, seed: int) -> list[tuple[str, int]]:
    """Questions of arithmetic that a small model cannot do in its head."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        a, b, c = (draw.randint(100, 9999) for _ in range(3))
        question, answer = draw.choice(
            [
                (f"What is {a} times {b}?", a * b),
                (f"What is {a} plus {b} minus {c}?", a + b - c),
                (f"Multiply {a} by {b} and add {c}.", a * b + c),
                (f"A shop sells {a} boxes of {b} nails. How many nails are that?", a * b),
            ]
        )
        made.append((question, answer))
    return made


def write_transcripts(path: Path, count: int) -> None:
    """Runs of an agent that always writes the right program, as rows for sft."""
    tool = PythonTool(Sandbox.open())
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    with path.open("w", encoding="utf-8") as file:
        for question, answer in problems(count, seed=1):
            numbers = [each.strip(".?") for each in question.split() if each.strip(".?").isdigit()]
            if "minus" in question:
                code = f"print({numbers[0]} + {numbers[1]} - {numbers[2]})"
            else:
                code = f"print({' * '.join(numbers[:2])}{f' + {numbers[2]}' if len(numbers) > 2 else ''})"
            call = {
                "id": "c",
                "type": "function",
                "function": {"name": "python", "arguments": json.dumps({"code": code})},
            }
            messages = [
                {"role": "user", "content": question},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                {"role": "tool", "tool_call_id": "c", "content": f"{answer}\n"},
                {"role": "assistant", "content": f"The answer is {answer}."},
            ]
            file.write(json.dumps({"messages": messages, "tools": [{"type": "function", "function": function}]}) + "\n")


def measure_attempts(model: LoadedModel, name: str) -> Iterator[str]:
    """The tokens that the model reads and writes for one attempt and for four, whose first answer is a call."""
    for attempts in (1, 4):
        with AsyncEngine([model], max_num_seqs=AT_ONCE) as engine:
            limits = AgentLimits(steps=1)
            agent = Agent(engine, name, [PythonTool(Sandbox.open())], limits=limits, max_tokens=64, required=True)
            runs = agent.run([{"role": "user", "content": problems(1, seed=2)[0][0]}], attempts=attempts)
            figures = engine.engine.metrics
            yield (
                f"{attempts} attempts: prompt of {runs[0].num_prompt_tokens}, read {figures.prompt_tokens}, "
                f"written {figures.output_tokens}, different {len({str(each.transcript()) for each in runs})}"
            )


def measure_arithmetic(model: LoadedModel, name: str, count: int, attempts: int) -> Iterator[str]:
    """Held-out problems: how many the agent answers, and with how many calls; several attempts at temperature 0.8."""
    tool = PythonTool(Sandbox.open())
    with AsyncEngine([model], max_num_seqs=AT_ONCE) as engine:
        limits = AgentLimits(steps=4, tokens=400, seconds=600)
        sampling = SamplingParams(temperature=0.0 if attempts == 1 else 0.8)
        agent = Agent(engine, name, [tool], limits=limits, sampling=sampling, max_tokens=96)

        def one(problem: tuple[str, int]) -> tuple[bool, bool]:
            run = choose(agent.run([{"role": "user", "content": problem[0]}], attempts=attempts)).run
            answered = run.text.replace(",", "")
            return str(problem[1]) in answered, any(each["role"] == "tool" for each in run.messages)

        with ThreadPoolExecutor(AT_ONCE) as threads:
            results = list(threads.map(one, problems(count, seed=2)))
    yield f"right {sum(right for right, _ in results)} of {count}; with a call {sum(used for _, used in results)}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("valid", "functions", "arithmetic", "attempts", "write"))
    parser.add_argument("model", type=Path)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="number of the first request, to go on with")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--adapter", type=Path)
    parser.add_argument("--attempts", type=int, default=1)
    given = parser.parse_args()
    if given.what == "write":
        write_transcripts(given.model, given.requests)
        return
    model = load_model(given.model)
    name = model.name
    if given.adapter is not None:
        model.load_adapter("trained", given.adapter)
        name = f"{name}:trained"
    lines = {
        "valid": lambda: measure_valid(model, given.requests, given.first),
        "functions": lambda: measure_functions(model, name, given.data, given.requests),
        "arithmetic": lambda: measure_arithmetic(model, name, given.requests, given.attempts),
        "attempts": lambda: measure_attempts(model, name),
    }[given.what]()
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
