"""Measures a served swarm that learns by itself: `python -m tests.swarm.measure_served_learning --team team`.

`synthe serve --swarm` with SmolLM2 and one specialist. Preference pairs are approved while it runs; the server begins
to learn, and clients stream answers until the gate has decided. Then the same with pairs whose sides are swapped, and
a way back. Every answer must be whole, and of one version. Prints what happened as JSON.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from synthe_core.swarm.folder import SwarmFolder
from synthe_core.swarm.learning.learn import roll_back
from tests.paths import ROOT, SHARED
from tests.processes import start
from tests.swarm.measure_learning import NAME, approve, new_team, single_turns
from tests.swarm.test_team import set_keys

REQUEST = "Tell me how a lighthouse works."
LOOK = 1.0


def harmless() -> list[tuple[str, str, str]]:
    """Anthropic's dialogues of one turn, the shortest first: prompt, chosen, rejected."""
    made = set()
    with gzip.open(SHARED / "data" / "preference" / "hh_harmless_half.jsonl.gz", "rt", encoding="utf-8") as file:
        for row in map(json.loads, file):
            sides = [row[side].split("\n\nHuman: ")[1:] for side in ("chosen", "rejected")]
            if all(len(turns) == 1 for turns in sides):
                (prompt, chosen), (other, rejected) = (turns[0].split("\n\nAssistant:", 1) for turns in sides)
                if prompt == other and chosen.strip() and rejected.strip():
                    made.add((prompt.strip(), chosen.strip(), rejected.strip()))
    return sorted(made, key=lambda each: (sum(map(len, each)), each))


def all_pairs(count: int, longest: int = 2600) -> list[tuple[str, str, str]]:
    """`count` pairs, the general ones of up to `longest` characters first, in an order that mixes both sources."""
    general = [each for each in single_turns() if sum(map(len, each)) <= longest]
    rows = [*general, *harmless()][:count]
    return sorted(rows, key=lambda each: hashlib.sha256(each[0].encode()).digest())


@contextmanager
def serving(team: Path, log: Path, limit: float) -> Any:
    """The address of `synthe serve --swarm`, with one thread for its engine."""
    command = [sys.executable, "-c", "from synthe_cli.app import main; main()", "serve", "--swarm", str(team)]
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with log.open("w") as output:
        process = start(
            [*command, "--port", "0", "--json"], limit=limit, stdout=output, stderr=output, text=True, env=surroundings
        )
        try:
            while not (text := log.read_text()).strip().startswith("{"):
                assert process.poll() is None, text
                time.sleep(LOOK)
            yield json.loads(text.splitlines()[0])["url"]
        finally:
            process.terminate()
            process.wait(60)


class Clients:
    """Clients that stream one request again and again, with a pause as a reader makes. As a context manager."""

    def __init__(self, url: str, count: int, pause: float) -> None:
        self._url, self._pause, self._stop = url, pause, threading.Event()
        self.texts, self.faults, self.seconds = Counter[str](), Counter[str](), list[float]()
        self._pool = ThreadPoolExecutor(count)
        self._count = count

    def __enter__(self) -> Clients:
        for number in range(self._count):
            self._pool.submit(self._run, number)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown()

    def _run(self, number: int) -> None:
        body = {
            "model": NAME,
            "messages": [{"role": "user", "content": REQUEST}],
            "max_tokens": 32,
            "temperature": 0,
            "stream": True,
            "user": f"user {number}",
        }
        while not self._stop.wait(self._pause):
            began = time.perf_counter()
            try:
                self.texts[self._answer(body)] += 1
            except Exception as error:  # every one of them is what is measured
                self.faults[f"{type(error).__name__}: {error}"[:200]] += 1
            self.seconds.append(time.perf_counter() - began)

    def _answer(self, body: dict[str, Any]) -> str:
        text, ends = "", 0
        with httpx.stream("POST", f"{self._url}/v1/chat/completions", json=body, timeout=300) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if line == "data: [DONE]":
                    ends += 1
                elif line.startswith("data: "):
                    event = json.loads(line.removeprefix("data: "))
                    if "error" in event:
                        raise RuntimeError(event["error"])
                    for choice in event["choices"]:
                        text += choice["delta"].get("content") or ""
        if ends != 1:
            raise RuntimeError(f"the stream ended {ends} times")
        return text


def batch(folder: SwarmFolder, url: str, rows: list[tuple[str, str, str]], options: Any) -> dict[str, Any]:
    """Approves the pairs, and streams answers from when learning begins until it has ended."""
    set_keys(folder, min_pairs=str(len(rows) * 9 // 10))  # of which some have the same prompt
    known, began = len(folder.ledger()), time.perf_counter()
    approve(folder, rows)
    while not list((folder.path / "learning").glob("*")):
        time.sleep(LOOK)
    waited = time.perf_counter() - began
    with Clients(url, options.clients, options.pause) as clients:
        while len(folder.ledger()) == known:
            time.sleep(LOOK)
        time.sleep(options.after)
    (event,) = folder.ledger()[known:]
    return {
        "pairs": len(rows),
        "event": event["event"],
        "why": event.get("why"),
        "figures": event.get("figures"),
        "seconds": {"before it began": round(waited), "learning": round(time.perf_counter() - began - waited)},
        "answers": sum(clients.texts.values()),
        "median seconds of an answer": round(sorted(clients.seconds)[len(clients.seconds) // 2], 2),
        "texts": [[count, hashlib.sha256(text.encode()).hexdigest()[:8]] for text, count in clients.texts.items()],
        "faults": dict(clients.faults),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--team", type=Path, required=True, help="a new folder")
    parser.add_argument("--pairs", type=int, default=250)
    parser.add_argument("--swapped", type=int, default=60)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--pause", type=float, default=10.0, help="seconds of a client between two requests")
    parser.add_argument("--after", type=float, default=60.0, help="seconds of answers after the decision")
    parser.add_argument("--limit", type=float, default=7200.0, help="seconds after which the server is killed")
    for name, default in (("epochs", 1), ("lr", 2e-4), ("sequence", 512)):
        parser.add_argument(f"--{name}", type=type(default), default=default)
    options = parser.parse_args()
    folder = new_team(options.team, epochs=options.epochs, lr=options.lr, sequence=options.sequence, idle_seconds=3.0)
    rows = all_pairs(options.pairs + options.swapped)
    swapped = [(prompt, rejected, chosen) for prompt, chosen, rejected in rows[options.pairs :]]
    versions = folder.versions(NAME)
    with serving(options.team, options.team / "server.log", options.limit) as url:
        first = batch(folder, url, rows[: options.pairs], options)
        print(json.dumps(first, indent=1), flush=True)
        digest = versions.digest(versions.current)
        print(json.dumps(batch(folder, url, swapped, options), indent=1), flush=True)
        print(
            f"the swapped pairs left the adapter as it was: {versions.digest(versions.current) == digest}", flush=True
        )
        if first["event"] == "promoted":
            back = roll_back(folder, NAME)["adapter"]
            with Clients(url, options.clients, options.pause) as clients:
                time.sleep(options.after)
            print(f"rolled back to {back}: {dict(clients.faults)}")
            print([[count, hashlib.sha256(text.encode()).hexdigest()[:8]] for text, count in clients.texts.items()])


if __name__ == "__main__":
    main()
