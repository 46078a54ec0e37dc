"""What a served swarm takes up while it runs: specialists that were added, versions of adapters, ratings of other
processes, time to learn and to propose specialists."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from synthe_core.inference.validation import one_line
from synthe_core.swarm.learning.background import BackgroundLearning
from synthe_core.swarm.spawning.proposals import Proposals
from synthe_core.swarm.spawning.spawn import propose
from synthe_core.swarm.team import Swarm

INTERVAL = 0.5
"""Seconds between two looks."""
SEARCH, QUIET = 300.0, 1.0
"""Seconds between two searches for specialists that are missing, and without a request before one."""


class Watcher:
    """A thread beside a served swarm. As a context manager it ends with the block.

    log: called with a line for each change, and once for each failure.
    """

    def __init__(
        self, swarm: Swarm, learning: BackgroundLearning | None = None, log: Callable[[str], None] = lambda line: None
    ) -> None:
        self._swarm, self._log = swarm, log
        self._learning = BackgroundLearning(swarm.folder, swarm.store) if learning is None else learning
        self._stop, self._failed = threading.Event(), dict[str, str]()
        self._requests, self._busy = -1.0, time.monotonic()
        self._read = swarm.folder.spec_path.stat().st_mtime_ns
        self._next_search = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._learning.close()

    def look(self) -> None:
        """Looks once. What fails is logged and tried again at the next look."""
        work: Callable[[], None]
        for what, work in (
            ("specialists", self._specialists),
            ("adapters", self._adapters),
            ("ratings", self._ratings),
            ("learning", self._learn),
            ("spawning", self._spawn),
        ):
            try:
                work()
                self._failed.pop(what, None)
            except Exception as error:  # whatever it is, the other work goes on
                said = one_line(error)
                if self._failed.get(what) != said:
                    self._log(f"swarm, {what}: {said}")
                self._failed[what] = said

    def _run(self) -> None:
        while not self._stop.wait(INTERVAL):
            self.look()

    def _specialists(self) -> None:
        changed = self._swarm.folder.spec_path.stat().st_mtime_ns
        if changed != self._read:
            for name in self._swarm.follow_specialists():
                self._log(f"{name} is taken up")
            self._read = changed

    def _adapters(self) -> None:
        for name in self._swarm.follow_adapters():
            adapter = self._swarm.running.adapters[name]
            self._log(f"{name} answers with {adapter or 'no adapter'} from now on")

    def _ratings(self) -> None:
        if self._swarm.follow_ratings():
            self._log("ratings of another process were learned")

    def _learn(self) -> None:
        wanted = self._swarm.learning_wanted.is_set()
        self._swarm.learning_wanted.clear()
        if self._learning.consider(self._idle_seconds(), wanted=wanted):
            self._log("learning begins: synthe swarm status shows how far it is")

    def _spawn(self) -> None:
        """Looks for specialists that are missing, while nobody waits for an answer."""
        swarm, now = self._swarm, time.monotonic()
        if swarm.spec.spawn.mode == "off" or now < self._next_search or self._idle_seconds() < QUIET:
            return
        self._next_search = now + SEARCH
        proposals = Proposals(swarm.folder, swarm.store)
        for proposal in propose(proposals, swarm.write_json):
            self._log(f"proposed: {proposal.name}, for {proposal.requests} requests: synthe swarm spawn")
            if swarm.spec.spawn.mode == "auto":
                proposals.approve(proposal.name)

    def _idle_seconds(self) -> float:
        """How long no request has come and none was running."""
        engine, now = self._swarm.engine, time.monotonic()
        requests = engine.engine.metrics.of("").requests
        if engine.engine.has_unfinished or requests != self._requests:
            self._requests, self._busy = requests, now
        return now - self._busy
