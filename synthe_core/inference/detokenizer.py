"""From token ids to text, outside the engine: incremental UTF-8, stop strings, text that is held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from synthe_core.data.decoder import Decoder
from synthe_core.inference.outputs import Finished, Output, TokenOutput
from synthe_core.inference.stop_strings import stop_strings


class Detokenizer:
    """The text of one sequence. The end of it that a stop string begins with is held back, and no more. The text ends
    before the first stop string that is complete; of those that end at the same character, before the longest. A stop
    string that names a special token is that token.

    prefix: the beginning of the text that its reader already has; it is not repeated.
    stop_token_ids: tokens without text, at which the sequence ends.
    min_tokens: stop strings are not looked for in that many tokens.
    stopped: whether a stop string has come.
    """

    def __init__(
        self,
        decoder: Decoder,
        stop: Sequence[str] = (),
        prefix: str = "",
        *,
        stop_token_ids: Sequence[int] = (),
        min_tokens: int = 0,
    ) -> None:
        self.stopped = False
        self._decoder, self._prefix = decoder, prefix
        self._stops = stop_strings(tuple(dict.fromkeys(filter(None, stop)))) if any(stop) else None
        self._names = frozenset(stop)
        self._state = 0  # of the automaton
        self._stop_token_ids, self._num_unsearched = frozenset(stop_token_ids), min_tokens
        self._pending = ""

    def push(self, token_id: int) -> str:
        """The text that is final once `token_id` has come."""
        if token_id in self._stop_token_ids:
            return ""
        is_searched = not (self.stopped or self._num_unsearched)
        if self._names and is_searched and self._decoder.special(token_id) in self._names:
            text = self._release(self._decoder.flush())
            text, self._pending, self.stopped = text + self._pending, "", True
            return text
        text = self._release(self._decoder.push(token_id))
        self._num_unsearched -= self._num_unsearched > 0
        return text

    def flush(self) -> str:
        """The rest of the text, at the end of the sequence."""
        text = self._release(self._decoder.flush()) + ("" if self.stopped else self._pending)
        self._pending = ""
        return text

    def process(self, output: Output) -> Output:
        """The output with its text filled in."""
        if isinstance(output, TokenOutput):
            text = self.push(output.token_id)
        elif isinstance(output, Finished):
            text = self.flush()
        else:
            return output
        return replace(output, text=text) if text else output

    def _release(self, text: str) -> str:
        if self._prefix and text:
            self._prefix, text = "", text.removeprefix(self._prefix)
        if self.stopped or self._stops is None or self._num_unsearched:
            return "" if self.stopped else text
        begin = len(self._pending)
        self._pending += text
        for place, character in enumerate(text, begin + 1):
            self._state = self._stops.step(self._state, character)
            if length := self._stops.match_lengths[self._state]:
                self.stopped, text, self._pending = True, self._pending[: place - length], ""
                return text
        cut = len(self._pending) - self._stops.depths[self._state]
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text
