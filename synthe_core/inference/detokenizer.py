"""From token ids to text, outside the engine: incremental UTF-8, stop strings, text that is held back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from synthe_core.data.tokenizers import Decoder
from synthe_core.inference.outputs import Finished, Output, TokenOutput


class Detokenizer:
    """The text of one sequence. Text that may be the beginning of a stop string is held back; at a stop string the
    text ends before it.

    prefix: the beginning of the text that its reader already has; it is not repeated.
    stopped: whether a stop string has come.
    """

    def __init__(self, decoder: Decoder, stop: Sequence[str] = (), prefix: str = "") -> None:
        self.stopped = False
        self._decoder, self._stop, self._prefix = decoder, [each for each in stop if each], prefix
        self._pending = ""

    def push(self, token_id: int) -> str:
        """The text that is final once `token_id` has come."""
        return self._release(self._decoder.push(token_id))

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
        if not self._stop:
            return text
        self._pending += text
        ends = [place for stop in self._stop if (place := self._pending.find(stop)) >= 0]
        if ends:
            self.stopped, text, self._pending = True, self._pending[: min(ends)], ""
            return text
        size = max((n for s in self._stop for n in range(1, len(s)) if self._pending.endswith(s[:n])), default=0)
        cut = len(self._pending) - size
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text
