"""Results in the harness's format, with synthe's own information."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.storage.atomic import WAIT, failure, scratch_folder
from synthe_core.storage.claim import claim
from synthe_core.storage.hub.snapshot import source_name

RESULTS = "results"
JOINED = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
"""The parts of the harness's results that are keyed by task and merge over calls."""


class Results:
    """The results of one model, collected task by task."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        from lm_eval.loggers import EvaluationTracker

        self.path, self.settings, self.began = path, settings, time.time()
        self.values: dict[str, Any] = {name: {} for name in JOINED}
        self.samples: dict[str, list[Any]] = {}
        self._tracker: Any = EvaluationTracker()

    def add(self, part: dict[str, Any]) -> None:
        """Merges in the harness's `evaluate` of some tasks."""
        for name in JOINED:
            self.values[name] |= part.get(name, {})
        self.samples |= part.get("samples", {})

    def finish(self, model: Any, info: dict[str, Any]) -> dict[str, Any]:
        """All results, as the harness's `simple_evaluate` returns them, with `info` under the key `synthe`."""
        from lm_eval.loggers.utils import add_tokenizer_info

        results = {name: part for name, part in self.values.items() if part or name != "groups"}
        arguments = {"path": source_name(self.path)}
        results["config"] = {"model": "synthe", "model_args": arguments} | model.get_model_info() | self.settings
        results["git_hash"] = None
        results["date"] = self.began
        add_tokenizer_info(results, model)
        results["synthe"] = info
        return results

    def save(self, output: Path, results: dict[str, Any], chat_template: str | None, system: str | None) -> Path:
        """Writes results_*.json, and samples_*.jsonl if there are samples; returns the path of the results.

        They are written beside their place and then moved: a file of results is whole.
        """
        tracker = self._tracker
        with claim(output / RESULTS, wait=WAIT) as place, scratch_folder(place) as scratch:
            written = self._write(tracker, scratch, results, chat_template, system)
            folder = output / written.parent.name
            folder.mkdir(exist_ok=True)
            for each in sorted(written.parent.iterdir(), key=lambda each: each == written):  # the results last
                os.replace(each, folder / each.name)
        return folder / written.name

    def _write(
        self, tracker: Any, output: Path, results: dict[str, Any], chat_template: str | None, system: str | None
    ) -> Path:
        """Writes the files below `output`; returns the path of the results."""
        from lm_eval.loggers.utils import add_env_info

        tracker.output_path = str(output)
        tracker.general_config_tracker.log_experiment_args(
            model_source="synthe",
            model_args={"path": source_name(self.path)},
            system_instruction=system,
            chat_template=chat_template,
            fewshot_as_multiturn=chat_template is not None,
        )
        add_env_info(results)
        tracker.save_results_aggregated(results=results, samples=self.samples or None)
        folder = output / str(tracker.general_config_tracker.model_name_sanitized)
        path = folder / f"results_{getattr(tracker, 'date_id', '')}.json"
        if not path.is_file():
            raise WorkError(f"{path.parent} could not be written", "is the disk full?")
        for name, samples in self.samples.items():
            tracker.save_results_samples(task_name=name, samples=samples)
        return path


def results_folder(output: Path, path: Path) -> Path:
    """Where the results of the model at `path` go."""
    from lm_eval.utils import sanitize_model_name

    return output / sanitize_model_name(source_name(path))


def check_output(output: Path | None) -> None:
    """InputError if no results can be written: called before the evaluation."""
    if output is None:
        return
    if output.is_file() or output.suffix == ".json":
        raise InputError(f"--output {output} is not a folder", "a folder for each model is made in it")
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".synthe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise failure(output, error) from error
