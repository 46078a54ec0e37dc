"""A server as a candidate: streamed completions, timed by clients in a process of their own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from synthe_core.benchmarks.decoding import stream_client
from synthe_core.benchmarks.decoding.workload import PREFILL_TOKENS, PROMPT_TOKENS, prompt_tokens
from synthe_core.errors import WorkError

LIMIT = 600.0  # seconds of one measurement


class HttpCandidate:
    """`step` and `prefill` of the server at host:port; whatever starts it sets them."""

    name = ""
    host, port, model, vocab = "127.0.0.1", 0, "", 0

    def step(self, rows: int, tokens: int) -> float:
        return float(self._stream(rows, PROMPT_TOKENS, tokens)["step"])

    def prefill(self) -> float:
        return float(self._stream(1, PREFILL_TOKENS, 2)["first"])

    def _stream(self, rows: int, length: int, tokens: int) -> dict[str, Any]:
        """The figures of so many requests at once. WorkError if one of them fails."""
        settings: dict[str, Any] = {
            "model": self.model, "max_tokens": tokens, "temperature": 0, "stream": True, "ignore_eos": True,
            "stream_options": {"include_usage": True}, "cache_prompt": False,
        }  # fmt: skip
        bodies = [settings | {"prompt": prompt_tokens(self.vocab, length, row)} for row in range(rows)]
        job = {"host": self.host, "port": self.port, "path": "/v1/completions", "bodies": bodies}
        command = [sys.executable, "-I", str(Path(stream_client.__file__))]
        try:
            done = subprocess.run(command, input=json.dumps(job), capture_output=True, text=True, timeout=LIMIT)
            answer: dict[str, Any] = json.loads(done.stdout)
        except subprocess.TimeoutExpired:
            raise WorkError(f"{self.name} took longer than {LIMIT:.0f} s", "fewer --tokens, or fewer --rows") from None
        except ValueError:
            raise WorkError(f"the clients of {self.name} failed: {done.stderr.strip()[-300:]}") from None
        if answer["error"]:
            raise WorkError(f"{self.name} failed a request: {answer['error']}")
        return answer
