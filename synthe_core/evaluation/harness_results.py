"""Results as the harness writes them, with what synthe knows besides."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.storage.atomic import failure

JOINED = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
"""The parts of the harness's results that are by task, and add up over calls."""


class Results:
    """The results of one model, which grow task by task."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        from lm_eval.loggers import EvaluationTracker

        self.path, self.settings, self.began = path, settings, time.time()
        self.values: dict[str, Any] = {name: {} for name in JOINED}
        self.samples: dict[str, list[Any]] = {}
        self._tracker: Any = EvaluationTracker()

    def add(self, part: dict[str, Any]) -> None:
        """What the harness's `evaluate` gave for some tasks."""
        for name in JOINED:
            self.values[name] |= part.get(name, {})
        self.samples |= part.get("samples", {})

    def finish(self, model: Any, facts: dict[str, Any]) -> dict[str, Any]:
        """The whole, as the harness's `simple_evaluate` would give it, and `facts` under the key `synthe`."""
        from lm_eval.loggers.utils import add_tokenizer_info

        found = {name: part for name, part in self.values.items() if part or name != "groups"}
        arguments = {"path": str(self.path)}
        found["config"] = {"model": "synthe", "model_args": arguments} | model.get_model_info() | self.settings
        found["git_hash"] = None
        found["date"] = self.began
        add_tokenizer_info(found, model)
        found["synthe"] = facts
        return found

    def save(self, output: Path, found: dict[str, Any], chat_template: str | None, system: str | None) -> Path:
        """Writes results_*.json, and samples_*.jsonl where samples were kept; gives the former's path."""
        from lm_eval.loggers.utils import add_env_info

        tracker = self._tracker
        tracker.output_path = str(output)
        tracker.general_config_tracker.log_experiment_args(
            model_source="synthe",
            model_args={"path": str(self.path)},
            system_instruction=system,
            chat_template=chat_template,
            fewshot_as_multiturn=chat_template is not None,
        )
        add_env_info(found)
        tracker.save_results_aggregated(results=found, samples=self.samples or None)
        folder = output / str(tracker.general_config_tracker.model_name_sanitized)
        path = folder / f"results_{getattr(tracker, 'date_id', '')}.json"
        if not path.is_file():
            raise WorkError(f"{path.parent} could not be written", "is the disk full?")
        for name, samples in self.samples.items():
            tracker.save_results_samples(task_name=name, samples=samples)
        return path


def folder_of(output: Path, path: Path) -> Path:
    """Where the results of the model at `path` go."""
    from lm_eval.utils import sanitize_model_name

    return output / sanitize_model_name(str(path))


def check_output(output: Path | None) -> None:
    """InputError where no results can be written: asked before the work, so that it is not in vain."""
    if output is None:
        return
    if output.is_file() or output.suffix == ".json":
        raise InputError(f"--output {output} is to be a folder", "a folder for each model is made in it")
    try:
        output.mkdir(parents=True, exist_ok=True)
        probe = output / ".synthe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise failure(output, error) from error
