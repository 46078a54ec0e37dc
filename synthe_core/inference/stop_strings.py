"""Stop strings in text that comes in pieces: one pass over the characters (Aho and Corasick 1975)."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from functools import lru_cache

MAX_AUTOMATA = 32
"""Automata that are kept for the next request with the same stop strings: the choices of a prompt share one."""
_CHARACTER = 21  # bits


class StopStrings:
    """The automaton of some strings. A character costs a step or two on average, however many strings there are and
    however long they are.

    A state stands for the longest end of the text that a string begins with. depths: its length. match_lengths: that of
    the longest string that ends there, 0 for none. State 0 is that of an empty text.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self.depths, self.match_lengths = [0], [0]
        self._edges: dict[int, int] = {}  # state and character -> state
        for string in strings:
            state = 0
            for depth, character in enumerate(string, 1):
                edge = state << _CHARACTER | ord(character)
                if edge not in self._edges:
                    self._edges[edge] = len(self.depths)
                    self.depths.append(depth)
                    self.match_lengths.append(0)
                state = self._edges[edge]
            self.match_lengths[state] = self.depths[state]
        self._shorter = self._links()

    def _links(self) -> list[int]:
        """The state of the longest proper end of each state's text that a string begins with."""
        links = [0] * len(self.depths)
        children: list[list[int]] = [[] for _ in self.depths]
        for edge in self._edges:
            children[edge >> _CHARACTER].append(edge)
        states = deque([0])
        while states:
            state = states.popleft()
            for edge in children[state]:
                child = self._edges[edge]
                states.append(child)
                if state:
                    character, link = edge & ((1 << _CHARACTER) - 1), links[state]
                    while link and link << _CHARACTER | character not in self._edges:
                        link = links[link]
                    links[child] = self._edges.get(link << _CHARACTER | character, 0)
                self.match_lengths[child] = self.match_lengths[child] or self.match_lengths[links[child]]
        return links

    def step(self, state: int, character: str) -> int:
        """The state after another character."""
        code = ord(character)
        while True:
            if (after := self._edges.get(state << _CHARACTER | code)) is not None:
                return after
            if not state:
                return 0
            state = self._shorter[state]


@lru_cache(MAX_AUTOMATA)
def stop_strings(strings: tuple[str, ...]) -> StopStrings:
    """The automaton of these strings, none of which is empty."""
    return StopStrings(strings)
