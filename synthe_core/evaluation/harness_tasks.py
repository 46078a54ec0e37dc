"""Loading the harness's tasks, and explaining their failures in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from synthe_core.data.tokenizers import Tokenizer
from synthe_core.errors import SyntheError
from synthe_core.evaluation.suites import Entry
from synthe_core.evaluation.task_index import resolve, task_manager
from synthe_core.hardware.probe import cache_dir

LENGTHS = "max_seq_lengths"
"""The metadata key of tasks that generate texts of given lengths in tokens; they need the tokenizer too."""
FEWSHOT_SEED = 1234  # the harness's own


class TaskRequest(NamedTuple):
    """A task or group to evaluate: `spec` for the harness, `name` for people."""

    spec: str
    name: str
    num_fewshot: int | None


class Loader:
    """Loads each task once for all models that can share it."""

    def __init__(self, entries: Sequence[Entry], include: Sequence[Path], metadata: Mapping[str, Any]) -> None:
        self._include, self._metadata = include, metadata
        self._names = [entry.task for entry in entries]
        self._managers: dict[str, Any] = {}
        self._loaded: dict[tuple[str, str], Any] = {}
        known = self._manager(None).task_index
        requests = (
            TaskRequest(spec, spec if spec in known else Path(spec).stem, entry.num_fewshot)
            for entry in entries
            for spec in resolve([entry.task], known)
        )
        self.tasks = list(dict.fromkeys(requests))

    def load(self, request: TaskRequest, tokenizer: Tokenizer, num_fewshot: int | None) -> dict[str, Any]:
        """The harness's task objects, ready to evaluate. Raises whatever the harness or the data raises."""
        length_tokenizer = tokenizer if LENGTHS in self._metadata and "tokenizer" not in self._metadata else None
        key = (request.spec, "" if length_tokenizer is None else length_tokenizer.digest)
        if key not in self._loaded:
            try:
                self._loaded[key] = self._manager(length_tokenizer).load([request.spec])
            except Exception as error:  # of the harness, of the data, of a task's own code
                self._loaded[key] = error
        loaded = self._loaded[key]
        if isinstance(loaded, Exception):
            raise loaded
        shots = request.num_fewshot if num_fewshot is None else num_fewshot
        for task in loaded["tasks"].values():
            if shots is not None and task.get_config("num_fewshot") != 0:
                task.set_config(key="num_fewshot", value=shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        return loaded

    def _manager(self, tokenizer: Tokenizer | None) -> Any:
        digest = "" if tokenizer is None else tokenizer.digest
        if digest not in self._managers:
            metadata = dict(self._metadata)
            if tokenizer is not None:
                folder = cache_dir() / "evaluation" / "tokenizers" / digest
                folder.mkdir(parents=True, exist_ok=True)
                tokenizer.save(folder)
                metadata["tokenizer"] = str(folder)
            self._managers[digest] = task_manager(self._include, metadata, self._names)
        return self._managers[digest]


def explain(error: BaseException) -> str:
    """Why a task could not be evaluated, and what to do, in one line."""
    import datasets
    import requests
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    if isinstance(error, SyntheError):
        return error.message + (f" ({error.hint})" if error.hint else "")
    text = " ".join(str(error).split())[:300] or "no message"
    if isinstance(error, ImportError):
        hint = "" if "pip install" in text else " (pip install 'lm-eval[tasks]' brings most of them)"
        return f"it needs a package that is not installed: {text}{hint}"
    unreachable = (
        datasets.exceptions.DatasetNotFoundError,
        requests.RequestException,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        ConnectionError,
    )
    if isinstance(error, unreachable):
        return (
            f"its data is not on disk and cannot be fetched: {text} (run once with the network, or put a copy of the "
            "data set into a folder of its name here)"
        )
    if isinstance(error, FileNotFoundError):
        return f"its data is not there: {text} (data_files of a task are relative to the working folder)"
    if (
        isinstance(error, IndexError) and _last_locals(error).get("choice") == ""
    ):  # the harness looks at its first letter
        return "an empty choice in its first document, whose log-likelihood would be 0 and beat every other"
    return f"{type(error).__name__}: {text}"


def _last_locals(error: BaseException) -> Mapping[str, Any]:
    """The variables of the function that raised the error."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_locals if trace is not None else {}
