"""The load test of `bench serve`: many concurrent clients of an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from synthe_core.benchmarks.load_test.figures import figures
from synthe_core.benchmarks.load_test.prompts import Prompts, text_of
from synthe_core.benchmarks.load_test.request import CANCELLED, RequestResult, error_message, send
from synthe_core.errors import InputError, WorkError, closest
from synthe_core.events import Event, Notice, Progress, Result

POLL_INTERVAL = 0.25  # seconds
PROBE = 2000  # characters of the text that measures characters per token
CLIENT_CPU_LIMIT = 0.8  # of a core; above it the clients limit the result
LOOPBACK = ("127.", "localhost", "[::1]")


@dataclass(frozen=True)
class LoadTest:
    """The options of a load test.

    clients:  each sends a request when its last one has ended; None with a `rate`.
    rate:     requests per second, as a Poisson process, independent of responses.
    turns:    requests of a conversation; each repeats the earlier messages and answers.
    check:    every request is sent again alone afterwards, to `against` if given, and must get the same answer.
    """

    url: str
    requests: int = 100
    clients: int | None = 8
    rate: float | None = None
    model: str | None = None
    chat: bool = False
    prompt_tokens: int = 64
    output_tokens: int = 32
    temperature: float = 0.0
    seed: int = 0
    turns: int = 1
    ignore_eos: bool = False
    check: bool = False
    against: str | None = None
    data: Path | None = None
    api_key: str | None = None
    timeout: float = 600.0

    @property
    def path(self) -> str:
        return "chat/completions" if self.chat else "completions"


def run_load_test(options: LoadTest, stop: threading.Event | None = None) -> Iterator[Event]:
    """Sends the requests and yields events. The last one is a Result with the figures and, as "answers", every result.

    When `stop` is set, running requests are cancelled, and the figures are those of the finished ones.
    """
    stop = stop or threading.Event()
    if (options.clients is None) == (options.rate is None):
        raise InputError("give either a number of clients or a rate", "--clients 64, or --rate 5")
    prompts = Prompts(text_of(options.data, options.seed), options.prompt_tokens, options.seed)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        work = _LoadTester(options, prompts)
        try:
            loop.run_until_complete(work.prepare())
            way = f"{options.clients} clients" if options.clients else f"{options.rate:g} requests per second"
            yield Notice(f"{work.model} at {options.url}: {options.requests} requests, {way}")
            begun, cpu = time.perf_counter(), time.process_time()
            yield from _until(loop, work.all(), work.answers, "requests", stop, options.requests)
            done = [answer for answer in work.answers if answer.error != CANCELLED]
            seconds = max((answer.ended for answer in done), default=begun) - begun
            busy = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - begun)
            values = figures(done, seconds, options.turns)
            if options.check and not stop.is_set():
                yield from _until(loop, work.again(), work.alone, "checks", stop, values["answered"])
                values |= work.compared()
        finally:
            loop.run_until_complete(work.close())
    if busy > CLIENT_CPU_LIMIT:
        yield Notice(f"the clients used {busy:.0%} of a core: they may limit the result", "warning")
    if done and not any(answer.has_usage for answer in done):
        yield Notice("the server returns no token counts: chunks are counted instead", "warning")
    facts = {"url": options.url, "model": work.model, "requests": options.requests, "sent": len(done)}
    yield Result({**facts, **values, "answers": done})


def _until(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, None],
    done: list[RequestResult],
    what: str,
    stop: threading.Event,
    total: int,
) -> Iterator[Event]:
    """Runs `work`, which fills `done`, until it ends or `stop` is set, and yields its progress."""
    task = loop.create_task(work)
    begun = time.perf_counter()
    while not task.done():
        loop.run_until_complete(asyncio.wait({task}, timeout=POLL_INTERVAL))
        if stop.is_set():
            task.cancel()
            loop.run_until_complete(asyncio.wait({task}))
        count, spent = len(done), time.perf_counter() - begun
        yield Progress(what, count, total, "", spent / count * (total - count) if count else None)
    if not task.cancelled():
        task.result()


class _LoadTester:
    """The clients, in an event loop. answers: results in the order in which they ended. alone: results of the same
    requests, sent again one at a time."""

    def __init__(self, options: LoadTest, prompts: Prompts) -> None:
        self.options, self.prompts, self.model = options, prompts, options.model or ""
        self.answers: list[RequestResult] = []
        self.alone: list[RequestResult] = []
        self._http = _client(options.url, options)
        self._other = _client(options.against, options) if options.against else self._http

    async def close(self) -> None:
        await self._http.aclose()
        await self._other.aclose()

    async def prepare(self) -> None:
        """Chooses the model, and measures characters per token."""
        self.model = await self._choose()
        probe = RequestResult(0, 0, self._body(self.prompts.slice(-1, length=PROBE), [], 0) | {"max_tokens": 1})
        await send(self._http, self.options.path, probe)
        if probe.error is not None:
            raise WorkError(
                f"{self.options.url} fails a first request with {probe.error}: {probe.message}", "see the server's log"
            )
        if probe.prompt:
            self.prompts.characters = PROBE / probe.prompt

    async def all(self) -> None:
        """Runs all conversations, by clients or at the given rate."""
        options = self.options
        numbers = iter(range(-(-options.requests // options.turns)))
        async with asyncio.TaskGroup() as group:
            if options.clients is not None:
                for client in range(options.clients):
                    group.create_task(self._client(client, numbers))
                return
            drawn, due = random.Random(options.seed), time.perf_counter()
            for number in numbers:
                due += drawn.expovariate(options.rate or 1.0)
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(self._converse(number, number))

    async def again(self) -> None:
        """Sends every successful request again, one at a time."""
        for answer in self._good():
            repeated = RequestResult(answer.client, answer.turn, answer.body)
            await send(self._other, self.options.path, repeated)
            self.alone.append(repeated)

    def compared(self) -> dict[str, Any]:
        """The number of answers that differ from the same request alone, and the first of them."""
        pairs = list(zip(self._good(), self.alone, strict=False))  # fewer if it was stopped
        wrong = [(one, other) for one, other in pairs if other.error is not None or one.output != other.output]
        values: dict[str, Any] = {"checked": len(pairs), "different": len(wrong)}
        if wrong:
            one, other = wrong[0]
            alone = other.text if other.error is None else f"{other.error}: {other.message}"
            values["example"] = {"prompt": _prompt_text(one.body)[-80:], "text": one.text, "alone": alone}
        return values

    def _good(self) -> list[RequestResult]:
        return [answer for answer in self.answers if answer.error is None]

    async def _client(self, client: int, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._converse(client, number)

    async def _converse(self, client: int, number: int) -> None:
        """Runs the turns of one conversation, until one fails."""
        past: list[dict[str, str]] = []
        left = self.options.requests - number * self.options.turns
        for turn in range(min(self.options.turns, left)):
            says = self.prompts.slice(number, turn)
            answer = RequestResult(client, turn, self._body(says, past, number * self.options.turns + turn))
            try:
                await send(self._http, self.options.path, answer)
            finally:
                self.answers.append(answer)
            if answer.error is not None:
                return
            past += [{"role": "user", "content": says}, {"role": "assistant", "content": answer.text}]

    def _body(self, says: str, past: list[dict[str, str]], number: int) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": options.output_tokens,
            "temperature": options.temperature,
            "seed": options.seed + number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if options.ignore_eos:
            body["ignore_eos"] = True
        if options.chat:
            return (
                body | {"messages": [*past, {"role": "user", "content": says}]} | self._with_tokens({"logprobs": True})
            )
        prompt = "\n".join([*(message["content"] for message in past), says])
        return body | {"prompt": prompt} | self._with_tokens({"logprobs": 1})

    def _with_tokens(self, options: dict[str, Any]) -> dict[str, Any]:
        """The options that make the server return tokens, if answers are compared token by token."""
        return options if self.options.check else {}

    async def _choose(self) -> str:
        """The model to test: the one given, or the first of the server."""
        try:
            response = await self._http.get("models")
            if response.status_code in (401, 403):
                raise InputError(
                    f"{self.options.url} requires an API key: {error_message(response.content)}", "--api-key-file FILE"
                )
            names = [str(each["id"]) for each in response.json()["data"]]
        except httpx.HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise WorkError(f"no server at {self.options.url}: {reason}", "synthe serve RUN starts one") from None
        except (ValueError, KeyError, TypeError):
            names = []
        if self.options.model is None:
            if not names:
                raise WorkError(f"{self.options.url} lists no model (HTTP {response.status_code})", "name it: --model")
            return names[0]
        if names and self.options.model not in names and ":" not in self.options.model:
            near = closest(self.options.model, names)
            hint = f"did you mean '{near}'?" if near else f"available: {', '.join(names[:9])}"
            raise InputError(f"{self.options.url} has no model '{self.options.model}'", hint)
        return self.options.model


def _client(url: str, options: LoadTest) -> httpx.AsyncClient:
    """An HTTP client of the server's API. Proxies are used only for other hosts."""
    whole = url if "://" in url else f"http://{url}"
    base = whole.rstrip("/").removesuffix("/v1") + "/v1/"
    scheme, _, host = base.partition("://")
    try:
        if scheme not in ("http", "https") or not httpx.URL(base).host:
            raise httpx.InvalidURL("it needs a host, and http or https")
        return httpx.AsyncClient(
            base_url=base,
            headers={"Authorization": f"Bearer {options.api_key}"} if options.api_key else {},
            timeout=httpx.Timeout(options.timeout, connect=min(30.0, options.timeout), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not host.startswith(LOOPBACK),
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"{url} is not a server address: {error}", "for example http://127.0.0.1:6900") from None


def _prompt_text(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])
