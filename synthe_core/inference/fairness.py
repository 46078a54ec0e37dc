"""Clients share the engine equally: whose prompts are read next, and whose requests start."""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping

from synthe_core.inference.sequence import Sequence

OUTPUT_WEIGHT = 2
"""A generated token counts as so many tokens of a prompt."""
MAX_CLIENTS = 4096
"""Clients whose counters are remembered."""


class TokenCounters:
    """Virtual token counters (Sheng et al. 2024): the tokens that were computed for each client.

    A client that comes back after a pause counts as having had at least as much as the one with least among those that
    are being served: nobody saves up for later.
    """

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, float] = OrderedDict()
        self._requests: Counter[str] = Counter()

    def __getitem__(self, client: str) -> float:
        return self._tokens.get(client, 0)

    def enter(self, client: str) -> None:
        """A request of the client has come."""
        if not self._requests[client]:
            least = min((self[each] for each, count in self._requests.items() if count), default=0)
            self._tokens[client] = max(self[client], least)
        self._tokens.move_to_end(client)
        self._requests[client] += 1

    def leave(self, client: str) -> None:
        """A request of the client has ended."""
        self._requests[client] -= 1
        if not self._requests[client]:
            del self._requests[client]
        while len(self._tokens) > max(MAX_CLIENTS, len(self._requests)):
            oldest = next(each for each in self._tokens if each not in self._requests)
            del self._tokens[oldest]

    def charge(self, client: str, prompt_tokens: int = 0, output_tokens: int = 0) -> None:
        """Counts tokens that were computed for the client."""
        self._tokens[client] = self[client] + prompt_tokens + OUTPUT_WEIGHT * output_tokens


class WaitingQueue:
    """Sequences that wait for room: a queue for each client."""

    def __init__(self) -> None:
        self._queues: dict[str, deque[Sequence]] = {}

    def __iter__(self) -> Iterator[Sequence]:
        for queue in list(self._queues.values()):
            yield from list(queue)

    def __bool__(self) -> bool:
        return bool(self._queues)

    def append(self, sequence: Sequence) -> None:
        self._queues.setdefault(sequence.request.client, deque()).append(sequence)

    def push_front(self, sequence: Sequence) -> None:
        """Puts a sequence before the others of its client."""
        self._queues.setdefault(sequence.request.client, deque()).appendleft(sequence)

    def remove(self, sequence: Sequence) -> None:
        client = sequence.request.client
        self._queues[client].remove(sequence)
        if not self._queues[client]:
            del self._queues[client]

    def first(self, at_work: Mapping[str, int], counters: TokenCounters) -> Sequence:
        """The next sequence of the client that has least `at_work`, and among these of the one that got least."""
        client = min(self._queues, key=lambda each: (at_work.get(each, 0), counters[each]))
        return self._queues[client][0]
