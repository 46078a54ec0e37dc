"""The load generator, against the real server and against a fake one with scripted faults."""

from __future__ import annotations

import asyncio
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from synthe_core.benchmarks.load_test.figures import figures, quantile
from synthe_core.benchmarks.load_test.prompts import Prompts
from synthe_core.benchmarks.load_test.request import RequestResult
from synthe_core.benchmarks.load_test.run import LoadTest, run_load_test
from synthe_core.errors import InputError, WorkError
from synthe_core.events import Notice, Progress, Result
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings
from tests.cli.conftest import synthe  # noqa: F401 (a fixture)
from tests.evaluation.models import saved
from tests.processes import start

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The real one, with a small model of random weights."""
    path = saved(tmp_path_factory.mktemp("models") / "small")
    with AsyncEngine([LoadedModel.load(path)]) as engine, Server(engine, Settings()) as running:
        yield running


class Standin:
    """A server of OpenAI's protocol that counts to eight; `answers[n]` says how the request number n is answered."""

    def __init__(self) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.faults: dict[int, str] = {}
        self.keys: list[str | None] = []
        self.usage, self.pace, self.live, self.most = True, 0.0, 0, 0
        routes = [Route("/v1/models", self._models), Route("/v1/completions", self._write, methods=["POST"])]
        routes.append(Route("/v1/chat/completions", self._write, methods=["POST"]))
        config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="critical", ws="none", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> Standin:
        self._thread.start()
        while not self._server.started:
            time.sleep(0.005)
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: Any) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(5)

    async def _models(self, request: Request) -> Response:
        self.keys.append(request.headers.get("authorization"))
        return JSONResponse({"data": [{"id": "counter"}, {"id": "second"}]})

    async def _write(self, request: Request) -> Response:
        number, body = len(self.bodies), await request.json()
        self.bodies.append(body)
        fault = self.faults.get(number, "")
        if fault.isdigit():
            answer = JSONResponse({"error": {"message": f"code {fault}", "type": "x"}}, int(fault))
            answer.headers["Retry-After"] = "0.05"
            return answer
        return StreamingResponse(self._pieces(body, fault), media_type="text/event-stream")

    async def _pieces(self, body: dict[str, Any], fault: str) -> Any:
        chat = "messages" in body
        self.live += 1
        self.most = max(self.most, self.live)
        try:
            if chat:
                yield _line({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            for n in range(min(8, body["max_tokens"])):
                await asyncio.sleep(self.pace)
                if fault == "cut" and n == 3:
                    return
                if fault == "error" and n == 3:
                    yield _line({"error": {"message": "the engine fell over"}})
                    return
                if fault == "malformed" and n == 3:
                    yield "data: {not json\n\n"
                word = f"{n + 1 if fault == 'wrong' else n} "
                yield _line({"choices": [{"delta": {"content": word}} if chat else {"text": word}]})
            yield _line({"choices": [{"delta": {}, "text": "", "finish_reason": "length"}]})
            if self.usage:
                counts = {
                    "prompt_tokens": 40,
                    "completion_tokens": n + 1,
                    "prompt_tokens_details": {"cached_tokens": 10},
                }
                yield _line({"choices": [], "usage": counts})
            yield "data: [DONE]\n\n"
        finally:
            self.live -= 1


def _line(piece: dict[str, Any]) -> str:
    return f"data: {json.dumps(piece)}\n\n"


@pytest.fixture
def standin() -> Iterator[Standin]:
    with Standin() as running:
        yield running


def measured(url: str, **options: Any) -> dict[str, Any]:
    *_, last = run_load_test(LoadTest(url, **options))
    assert isinstance(last, Result)
    return last.values


def test_the_real_server_answers_every_request_as_it_does_alone(server: Server) -> None:
    values = measured(server.url, clients=5, requests=12, prompt_tokens=20, output_tokens=6, check=True)
    assert (values["answered"], values["errors"], values["checked"], values["different"]) == (12, {}, 12, 0)
    assert values["output_tokens"] == 72 and values["prompt_tokens"] == 12 * 20
    assert 0 < values["first_token"]["p50"] <= values["first_token"]["max"] < values["request"]["max"]
    assert values["between_tokens"]["p50"] > 0
    assert values["per_client"]["slowest"] > 0
    texts = {answer.text for answer in values["answers"]}
    assert len(texts) > 6, "prompts differ, and so do their answers"


def test_a_conversation_sends_its_earlier_turns(server: Server) -> None:
    values = measured(server.url, clients=2, requests=7, turns=3, prompt_tokens=10, output_tokens=4)
    assert values["answered"] == 7, "three conversations, of which the last is cut short"
    turns = values["turns"]
    assert [turn["answered"] for turn in turns] == [3, 2, 2]
    assert turns[0]["prompt"] < turns[1]["prompt"] < turns[2]["prompt"]
    by_text = {answer.body["prompt"]: answer for answer in values["answers"]}
    later = [answer for answer in values["answers"] if answer.turn == 2]
    for answer in later:
        first, result, second, said_too, _ = answer.body["prompt"].split("\n")
        assert by_text[first].text == result and by_text["\n".join([first, result, second])].text == said_too


def test_every_kind_of_failure_is_counted(standin: Standin) -> None:
    standin.faults = {2: "500", 3: "cut", 4: "error", 5: "malformed", 6: "429", 7: "400"}
    values = measured(standin.url, clients=1, requests=9)
    assert values["errors"] == {
        "HTTP 500": 1, "cut off": 1, "error in the stream": 1, "malformed": 1, "HTTP 400": 1,
    }  # fmt: skip
    assert (values["answered"], values["turned_away"]) == (4, 1)
    assert values["output_tokens"] == 32 and values["cached_share"] == 0.25
    (failed,) = (answer for answer in values["answers"] if answer.error == "error in the stream")
    assert failed.message == "the engine fell over"


def test_a_missing_or_hanging_server(standin: Standin) -> None:
    with pytest.raises(WorkError, match="no server at"):
        measured("http://127.0.0.1:9")
    for wrong in ("gopher://nowhere", "http://", "http://a:b:c", "127.0.0.1:port"):
        with pytest.raises(InputError, match="not a server address"):
            measured(wrong)
    assert measured(standin.url.removeprefix("http://") + "/v1/", requests=1)["answered"] == 1
    standin.pace = 5.0
    with pytest.raises(WorkError, match="timeout"):
        measured(standin.url, timeout=0.2)


def test_different_answers_are_counted(standin: Standin) -> None:
    standin.faults = {3: "wrong"}
    values = measured(standin.url, clients=1, requests=5, check=True)
    assert (values["checked"], values["different"]) == (5, 1)
    assert values["example"]["text"].startswith("1 2 3") and values["example"]["alone"].startswith("0 1 2")
    with Standin() as other:
        other.faults = dict.fromkeys(range(5), "wrong")
        values = measured(standin.url, clients=1, requests=5, check=True, against=other.url)
    assert values["different"] == 5 and len(other.bodies) == 5


def test_clients_are_closed_loop_and_arrivals_are_open_loop(standin: Standin) -> None:
    standin.pace = 0.01
    measured(standin.url, clients=3, requests=12)
    assert standin.most == 3
    standin.most = 0
    values = measured(standin.url, clients=None, rate=100.0, requests=30)
    assert standin.most > 5
    sent = sorted(answer.sent for answer in values["answers"])
    apart = [b - a for a, b in itertools.pairwise(sent)]
    assert len(sent) == 30 and max(apart) > 2 * sum(apart) / len(apart), "at random, not evenly"
    for both in ({"clients": 3, "rate": 1.0}, {"clients": None}):
        with pytest.raises(InputError, match="either a number of clients or a rate"):
            measured(standin.url, **both)


def test_prompts_have_the_requested_length_and_depend_on_the_seed(standin: Standin, tmp_path: Path) -> None:
    measured(standin.url, clients=1, requests=3, prompt_tokens=30, seed=5)
    first = [body["prompt"] for body in standin.bodies[1:]]
    assert [len(prompt) for prompt in first] == [30 * 2000 // 40] * 3, "2,000 characters were 40 tokens"
    measured(standin.url, clients=1, requests=3, prompt_tokens=30, seed=5)
    assert [body["prompt"] for body in standin.bodies[5:]] == first and len(set(first)) == 3
    (tmp_path / "text.txt").write_text("alpha beta gamma")
    measured(standin.url, clients=1, requests=1, data=tmp_path / "text.txt", prompt_tokens=2)
    assert set(standin.bodies[-1]["prompt"].split()) <= {"alpha", "beta", "gamma"} | {"alph", "alp", "al", "a"} | {
        "bet", "be", "b", "gamm", "gam", "ga", "g",
    }  # fmt: skip
    for name, text in (("none.txt", None), ("empty.txt", " \n")):
        if text is not None:
            (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=name):
            measured(standin.url, data=tmp_path / name)


def test_chats_count_no_token_for_the_role(standin: Standin) -> None:
    standin.usage = False
    events = list(run_load_test(LoadTest(standin.url, requests=2, clients=1, chat=True, turns=2, output_tokens=5)))
    values = events[-1].values  # type: ignore[attr-defined]
    assert values["output_tokens"] == 10, "pieces of text are counted"
    assert all(len(answer.gaps) == 4 for answer in values["answers"])
    assert [message["role"] for message in standin.bodies[-1]["messages"]] == ["user", "assistant", "user"]
    assert any(isinstance(event, Notice) and "returns no token counts" in event.message for event in events)


def test_a_stopped_run_returns_its_measurements(standin: Standin) -> None:
    standin.pace = 0.02
    stop, seen = threading.Event(), []
    for event in run_load_test(LoadTest(standin.url, requests=1000, clients=4), stop):
        seen.append(event)
        if isinstance(event, Progress) and event.done >= 4:
            stop.set()
    values = seen[-1].values
    assert 4 <= values["answered"] < 1000 and values["errors"] == {} and values["sent"] == values["answered"]
    time.sleep(0.1)
    assert standin.live == 0, "what was under way is hung up"


def test_figures_by_hand() -> None:
    assert [quantile([3, 1, 2, 4], q) for q in (0.0, 0.5, 0.75, 0.99, 1.0)] == [1, 2, 3, 4, 4]
    assert math.isnan(quantile([], 0.5))
    one = RequestResult(0, 0, {}, sent=1.0, first=1.5, ended=3.0, gaps=[0.5, 1.0], prompt=10, cached=5, written=3)
    two = RequestResult(1, 0, {}, sent=2.0, first=3.0, ended=5.0, gaps=[2.0], prompt=30, cached=5, written=12)
    bad = RequestResult(1, 0, {}, sent=2.0, ended=9.0, prompt=99, written=99, error="cut off")
    values = figures([one, two, bad], 8.0, 1)
    assert values["requests_per_second"] == 2 / 8 and values["output_tokens_per_second"] == 15 / 8
    assert values["cached_share"] == 10 / 40 and values["errors"] == {"cut off": 1}
    assert values["first_token"] == {"p50": 0.5, "p90": 1.0, "p99": 1.0, "max": 1.0}
    assert values["between_tokens"]["p50"] == 1.0 and values["request"]["max"] == 3.0
    each = values["per_client"]
    assert (each["slowest"], each["median"], each["fastest"]) == (1.5, 1.5, 4.0)
    assert each["jain"] == pytest.approx(5.5**2 / (2 * (1.5**2 + 4.0**2)))


def test_a_slice_starts_at_a_word() -> None:
    prompts = Prompts("one two three four five six seven", 2, 0)
    assert {prompts.slice(n, length=3) for n in range(60)} <= {"one", "two", "thr", "fou", "fiv", "six", "sev"}
    assert len(prompts.slice(1, length=500)) == 500


def test_the_command_prints_a_summary(standin: Standin, synthe: Run) -> None:  # noqa: F811
    result = synthe("bench", "serve", "--url", standin.url, "-n", 6, "-c", 2, "--check", "--plot", "--multi-turn", 2)
    assert result.exit_code == 0, result.stderr
    assert "time to first token" in result.stdout and "between tokens" in result.stdout
    assert "6 sent again alone, all identical, token by token" in result.stdout
    assert "25.0% cached" in result.stdout and "not cached" in result.stdout
    assert "#" in result.stdout or "█" in result.stdout


def test_the_command_exits_with_1_on_failed_or_different_answers(standin: Standin, synthe: Run) -> None:  # noqa: F811
    standin.faults = {2: "500"}
    result = synthe("bench", "serve", "--url", standin.url, "-n", 3, "-c", 1)
    assert result.exit_code == 1 and "1 of 3 requests failed" in result.stderr
    assert any(line.split() == ["failed", "1", "HTTP", "500"] for line in result.stdout.splitlines())
    standin.bodies.clear()
    standin.faults = {2: "wrong"}
    result = synthe("bench", "serve", "--url", standin.url, "-n", 3, "-c", 1, "--check", "--json")
    assert result.exit_code == 1 and "1 of 3 answers differ" in result.stderr
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["event"] == "result" and last["values"]["different"] == 1 and "answers" not in last["values"]
    for wrong in (["--model", "countr"], ["--rate", "2", "--clients", "3"]):
        result = synthe("bench", "serve", "--url", standin.url, *wrong)
        assert result.exit_code == 2 and result.stderr.startswith("error: ")


def test_check_against_compares_with_another_server(standin: Standin, synthe: Run) -> None:  # noqa: F811
    with Standin() as other:
        command = ["bench", "serve", "--url", standin.url, "-n", 3, "-c", 1, "--check-against", other.url]
        assert synthe(*command).exit_code == 0 and len(other.bodies) == 3
        other.faults = dict.fromkeys(range(6), "wrong")
        result = synthe(*command)
    assert result.exit_code == 1 and "3 of 3 answers differ" in result.stderr


def test_the_command_sends_its_key(standin: Standin, synthe: Run, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "key").write_text("s3cret\n")
    result = synthe("bench", "serve", "--url", standin.url, "-n", 1, "--api-key-file", tmp_path / "key")
    assert result.exit_code == 0 and set(standin.keys) == {"Bearer s3cret"}
    result = synthe("bench", "serve", "--url", standin.url, "--api-key-file", tmp_path / "none")
    assert result.exit_code == 2 and "s3cret" not in result.stderr


def test_ctrl_c_prints_the_measurements(standin: Standin) -> None:
    standin.pace = 0.02
    command = ["bench", "serve", "--url", standin.url, "-n", "5000", "-c", "2"]
    program = f"from synthe_cli.app import app; app({command!r})"
    running = start(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    while len(standin.bodies) < 6:
        time.sleep(0.02)
        assert running.poll() is None
    running.send_signal(signal.SIGINT)
    stdout, stderr = running.communicate(timeout=30)
    assert running.returncode == 130 and "stopped after" in stderr and "Traceback" not in stderr
    assert "time to first token" in stdout
