"""transformers' `generate` as a candidate: a batch of texts in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synthe_core.benchmarks.decoding import transformers_worker
from synthe_core.benchmarks.decoding.workload import PREFILL_TOKENS, PROMPT_TOKENS, prompt_tokens
from synthe_core.errors import InputError, WorkError


class TransformersGenerate:
    """InputError where transformers is missing, or cannot load the model."""

    name = "transformers"

    def __init__(self, model: Path, vocab: int, threads: int) -> None:
        if find_spec("transformers") is None:
            raise InputError("transformers is not installed", "pip install transformers")
        if not model.is_file() and not (model / "config.json").is_file():
            raise InputError(
                f"transformers runs GGUF files and its own model folders, and {model} is neither",
                "synthe export hf makes one, where its learners can be expressed",
            )
        self._vocab = vocab
        command = [sys.executable, "-I", str(Path(transformers_worker.__file__))]
        self._process: subprocess.Popen[str] | None = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        answer = self._ask({"model": str(model.resolve()), "threads": threads})
        if "error" in answer:
            self.close()
            raise InputError(f"transformers cannot load {model}: {answer['error']}", "compare with llama.cpp instead")
        self.settings = {
            "version": answer["version"], "weights": answer["precision"], "threads": str(threads),
            "over": "generate, one batch",
        }  # fmt: skip

    def prepare(self, rows: int) -> None:
        """Needs nothing."""

    def step(self, rows: int, tokens: int) -> float:
        prompts = [prompt_tokens(self._vocab, PROMPT_TOKENS, row) for row in range(rows)]
        return float(self._ask({"prompts": prompts, "tokens": tokens})["seconds"])

    def prefill(self) -> float:
        return float(self._ask({"prefill": prompt_tokens(self._vocab, PREFILL_TOKENS)})["seconds"])

    def close(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process is not None and self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
            answer: dict[str, Any] = json.loads(self._process.stdout.readline())
            return answer
        except (OSError, ValueError):
            self.close()
            raise WorkError("the process that runs transformers has ended", "fewer --rows need less memory") from None
