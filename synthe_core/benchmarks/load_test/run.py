"""The verb `bench serve`: many clients at once against an OpenAI-compatible server, and what they see."""

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
from synthe_core.benchmarks.load_test.request import GIVEN_UP, Answer, ask, told
from synthe_core.errors import InputError, WorkError, closest
from synthe_core.events import Event, Notice, Progress, Result

LOOK = 0.25  # seconds between two looks at how far the work is
PROBE = 2000  # characters of the text by which characters of a token are counted
BUSY = 0.8  # of a core: above this the clients themselves slow the answers down
LOOPBACK = ("127.", "localhost", "[::1]")


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    clients:  each sends a request when its last one is answered; None with a `rate`.
    rate:     requests a second that arrive at random (Poisson), whatever has been answered.
    turns:    requests of a conversation; each repeats what was said before it, and the server's answers.
    check:    every request is sent again alone afterwards, and must get the same answer; to `against` if given.
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


def load(asked: Load, stop: threading.Event | None = None) -> Iterator[Event]:
    """Sends the requests and yields events; the last is a Result with the figures and, under "answers", every Answer.

    `stop` set: what is under way is given up, and the figures are of what was answered till then.
    """
    stop = stop or threading.Event()
    if (asked.clients is None) == (asked.rate is None):
        raise InputError("a number of clients or a rate of arrivals, one of the two", "--clients 64, or --rate 5")
    prompts = Prompts(text_of(asked.data, asked.seed), asked.prompt_tokens, asked.seed)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        work = _Work(asked, prompts)
        try:
            loop.run_until_complete(work.prepare())
            way = f"{asked.clients} clients" if asked.clients else f"{asked.rate:g} arrivals a second"
            yield Notice(f"{work.model} at {asked.url}: {asked.requests} requests, {way}")
            begun, cpu = time.perf_counter(), time.process_time()
            yield from _until(loop, work.all(), work.answers, "requests", stop, asked.requests)
            done = [answer for answer in work.answers if answer.error != GIVEN_UP]
            seconds = max((answer.ended for answer in done), default=begun) - begun
            busy = (time.process_time() - cpu) / max(1e-9, time.perf_counter() - begun)
            found = figures(done, seconds, asked.turns)
            if asked.check and not stop.is_set():
                yield from _until(loop, work.again(), work.alone, "checks", stop, found["answered"])
                found |= work.compared()
        finally:
            loop.run_until_complete(work.close())
    if busy > BUSY:
        yield Notice(f"the clients themselves took {busy:.0%} of a core: a faster server would not show", "warning")
    if done and not any(answer.told_usage for answer in done):
        yield Notice("the server tells no token counts: pieces of text are counted instead", "warning")
    facts = {"url": asked.url, "model": work.model, "requests": asked.requests, "sent": len(done)}
    yield Result({**facts, **found, "answers": done})


def _until(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, None],
    done: list[Answer],
    what: str,
    stop: threading.Event,
    total: int,
) -> Iterator[Event]:
    """Runs `work`, which fills `done`, to its end or till `stop`, and tells how far it is."""
    task = loop.create_task(work)
    begun = time.perf_counter()
    while not task.done():
        loop.run_until_complete(asyncio.wait({task}, timeout=LOOK))
        if stop.is_set():
            task.cancel()
            loop.run_until_complete(asyncio.wait({task}))
        count, spent = len(done), time.perf_counter() - begun
        yield Progress(what, count, total, "", spent / count * (total - count) if count else None)
    if not task.cancelled():
        task.result()


class _Work:
    """The clients, in an event loop. answers: those that are in, in the order in which they ended; alone: of the same
    requests, sent again."""

    def __init__(self, asked: Load, prompts: Prompts) -> None:
        self.asked, self.prompts, self.model = asked, prompts, asked.model or ""
        self.answers: list[Answer] = []
        self.alone: list[Answer] = []
        self._http = _client(asked.url, asked)
        self._other = _client(asked.against, asked) if asked.against else self._http

    async def close(self) -> None:
        await self._http.aclose()
        await self._other.aclose()

    async def prepare(self) -> None:
        """Asks which models there are, and how many characters a token has."""
        self.model = await self._choose()
        probe = Answer(0, 0, self._body(self.prompts.slice(-1, length=PROBE), [], 0) | {"max_tokens": 1})
        await ask(self._http, self.asked.path, probe)
        if probe.error is not None:
            raise WorkError(
                f"{self.asked.url} answers a first request with {probe.error}: {probe.message}", "see the server's log"
            )
        if probe.prompt:
            self.prompts.characters = PROBE / probe.prompt

    async def all(self) -> None:
        """Every conversation, by clients that take them in turn, or as they arrive."""
        asked = self.asked
        numbers = iter(range(-(-asked.requests // asked.turns)))
        async with asyncio.TaskGroup() as group:
            if asked.clients is not None:
                for client in range(asked.clients):
                    group.create_task(self._client(client, numbers))
                return
            drawn, due = random.Random(asked.seed), time.perf_counter()
            for number in numbers:
                due += drawn.expovariate(asked.rate or 1.0)
                await asyncio.sleep(due - time.perf_counter())
                group.create_task(self._converse(number, number))

    async def again(self) -> None:
        """Every request that was answered, one at a time."""
        for answer in self._good():
            repeated = Answer(answer.client, answer.turn, answer.body)
            await ask(self._other, self.asked.path, repeated)
            self.alone.append(repeated)

    def compared(self) -> dict[str, Any]:
        """How many answers differ from the same request alone, and the first that does."""
        pairs = list(zip(self._good(), self.alone, strict=False))  # fewer where it was stopped
        wrong = [(one, other) for one, other in pairs if other.error is not None or one.said != other.said]
        found: dict[str, Any] = {"checked": len(pairs), "different": len(wrong)}
        if wrong:
            one, other = wrong[0]
            alone = other.text if other.error is None else f"{other.error}: {other.message}"
            found["example"] = {"prompt": _asked_text(one.body)[-80:], "text": one.text, "alone": alone}
        return found

    def _good(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.error is None]

    async def _client(self, client: int, numbers: Iterator[int]) -> None:
        for number in numbers:
            await self._converse(client, number)

    async def _converse(self, client: int, number: int) -> None:
        """The turns of one conversation, until one fails."""
        past: list[dict[str, str]] = []
        left = self.asked.requests - number * self.asked.turns
        for turn in range(min(self.asked.turns, left)):
            says = self.prompts.slice(number, turn)
            answer = Answer(client, turn, self._body(says, past, number * self.asked.turns + turn))
            try:
                await ask(self._http, self.asked.path, answer)
            finally:
                self.answers.append(answer)
            if answer.error is not None:
                return
            past += [{"role": "user", "content": says}, {"role": "assistant", "content": answer.text}]

    def _body(self, says: str, past: list[dict[str, str]], number: int) -> dict[str, Any]:
        asked = self.asked
        body: dict[str, Any] = {
            "model": self.model,
            "max_tokens": asked.output_tokens,
            "temperature": asked.temperature,
            "seed": asked.seed + number,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if asked.ignore_eos:
            body["ignore_eos"] = True
        if asked.chat:
            return body | {"messages": [*past, {"role": "user", "content": says}]} | self._names({"logprobs": True})
        prompt = "\n".join([*(message["content"] for message in past), says])
        return body | {"prompt": prompt} | self._names({"logprobs": 1})

    def _names(self, wish: dict[str, Any]) -> dict[str, Any]:
        """What makes the server name the tokens, where answers are to be compared token for token."""
        return wish if self.asked.check else {}

    async def _choose(self) -> str:
        """The model that is meant: the only one, the first, or the one that was named."""
        try:
            response = await self._http.get("models")
            if response.status_code in (401, 403):
                raise InputError(f"{self.asked.url} wants an API key: {told(response.content)}", "--api-key-file FILE")
            names = [str(each["id"]) for each in response.json()["data"]]
        except httpx.HTTPError as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise WorkError(f"no server at {self.asked.url}: {reason}", "synthe serve RUN starts one") from None
        except (ValueError, KeyError, TypeError):
            names = []
        if self.asked.model is None:
            if not names:
                raise WorkError(f"{self.asked.url} tells of no model (HTTP {response.status_code})", "name it: --model")
            return names[0]
        if names and self.asked.model not in names and ":" not in self.asked.model:
            near = closest(self.asked.model, names)
            hint = f"did you mean '{near}'?" if near else f"there: {', '.join(names[:9])}"
            raise InputError(f"{self.asked.url} has no model '{self.asked.model}'", hint)
        return self.asked.model


def _client(url: str, asked: Load) -> httpx.AsyncClient:
    """A client of the server's API; proxies are for hosts that are not this one."""
    whole = url if "://" in url else f"http://{url}"
    base = whole.rstrip("/").removesuffix("/v1") + "/v1/"
    scheme, _, host = base.partition("://")
    try:
        if scheme not in ("http", "https") or not httpx.URL(base).host:
            raise httpx.InvalidURL("it needs a host, and http or https")
        return httpx.AsyncClient(
            base_url=base,
            headers={"Authorization": f"Bearer {asked.api_key}"} if asked.api_key else {},
            timeout=httpx.Timeout(asked.timeout, connect=min(30.0, asked.timeout), pool=None),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
            trust_env=not host.startswith(LOOPBACK),
        )
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"{url} is no address of a server: {error}", "for example http://127.0.0.1:6900") from None


def _asked_text(body: dict[str, Any]) -> str:
    return str(body["prompt"] if "prompt" in body else body["messages"][-1]["content"])
