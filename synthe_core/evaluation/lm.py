"""The verb `eval lm`: checkpoints on the tasks of lm-evaluation-harness."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.evaluation.answers import Answers
from synthe_core.evaluation.harness_results import Results, check_output, results_folder
from synthe_core.evaluation.harness_tasks import FEWSHOT_SEED, Loader, TaskRequest, explain
from synthe_core.evaluation.hub_access import offline_if_unreachable
from synthe_core.evaluation.in_thread import in_thread
from synthe_core.evaluation.suites import Entry, load_suite
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.hardware.probe import cache_dir, probe
from synthe_core.storage.hub.snapshot import model_name, source_name
from synthe_core.storage.manifest import describe_hardware, package_versions

BOOTSTRAP = 1000  # resamples for the error of a metric that has no formula; the harness's 100,000 take minutes

Work = Callable[[Callable[[Event], None]], dict[str, Any]]


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, and how.

    tasks:       names, patterns and YAML files. suites: names and files of suites. include: folders with more tasks.
    limit:       the first N questions of each task; below 1 a share of them.
    num_fewshot: examples before each question, instead of the tasks' own number.
    metadata:    for tasks that generate their data from it.
    output:      the folder for results; log_samples: also write every question with its answer.
    resume:      reuse the answers of an interrupted run. use_cache: a folder in which answers are stored permanently.
    chat:        format requests with the model's chat template; system: the system message.
    The others are those of `harness_model.Synthe`.
    """

    tasks: Sequence[str] = ()
    suites: Sequence[str] = ()
    include: Sequence[Path] = ()
    limit: float | None = None
    num_fewshot: int | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    device: str = "auto"
    weights: str = "float32"
    memory: int | None = None
    prefix: str = "auto"
    max_length: int | None = None
    output: Path | None = None
    log_samples: bool = False
    resume: bool = False
    use_cache: Path | None = None
    chat: bool = False
    system: str | None = None
    seed: int = 0


def evaluate(paths: Sequence[Path], config: EvalConfig, stop: threading.Event | None = None) -> Iterator[Event]:
    """Evaluates each checkpoint on each task and yields events; the last is a Result with the harness's results.

    If a task fails, a warning reports it and the others run; WorkError follows the Result. If `stop` interrupts, the
    answers so far are saved for `resume`.
    """
    stop = stop or threading.Event()
    check_output(config.output)
    if config.log_samples and config.output is None:
        raise InputError("--log-samples writes files, and there is no folder for them", "name one with --output")
    entries = [Entry(task=name) for name in config.tasks]
    metadata = dict(config.metadata)
    for name in config.suites:
        suite = load_suite(name)
        entries += suite.entries
        metadata = suite.metadata | metadata
    if not entries:
        raise InputError("nothing to evaluate", "name --tasks or a --suite; `synthe eval list` shows them")
    models = [_open(path, config) for path in paths]
    yield Notice("finding the tasks")
    loader = Loader(entries, config.include, metadata)
    with offline_if_unreachable() as reachable:
        if not reachable:
            yield Notice("the hub does not answer: only data sets on disk are used")
        outcomes: list[ModelOutcome] = []
        failed: dict[str, str] = {}
        for path, model in zip(paths, models, strict=True):
            outcome = yield from _evaluate_model(path, model, loader, config, stop, len(paths) > 1, failed)
            outcomes.append(outcome)
            failed |= outcome.failed
    yield Result({"models": [each.results for each in outcomes]}, outcomes[-1].path if outcomes else None)
    if failed:
        message = f"{len(failed)} of {len(loader.tasks)} tasks failed: {', '.join(failed)}"
        raise WorkError(message, "the lines above say why; the other results are complete")


def _open(path: Path, config: EvalConfig) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from synthe_core.evaluation.harness_model import Synthe

    return Synthe(
        path,
        device=config.device,
        weights=config.weights,
        memory=config.memory,
        batch_size=config.batch_size,
        prefix=config.prefix,
        max_length=config.max_length,
        seed=config.seed,
    )


@dataclass
class ModelOutcome:
    """What the evaluation of one model gave: results in the harness's format, why tasks failed, the results file."""

    results: dict[str, Any]
    failed: dict[str, str]
    path: Path | None = None


def _evaluate_model(
    path: Path,
    model: Any,
    loader: Loader,
    config: EvalConfig,
    stop: threading.Event,
    several: bool,
    reported: Mapping[str, str],
) -> Generator[Event, None, ModelOutcome]:
    """Evaluates one model. Failures that are in `reported`, from the models before, give no notice again."""
    file = _answers_file(path, model, config)
    if not config.resume and config.use_cache is None:
        file.unlink(missing_ok=True)
    answers = model.answers = Answers(file)
    if len(answers):
        yield Notice(f"reusing {len(answers):,} answers of an earlier run")

    def check() -> None:
        if stop.is_set():
            raise Interrupted(
                f"interrupted: {len(answers):,} answers are saved", "continue with the same command and --resume"
            )

    model.reader.check = check
    collected = Results(path, _settings(model, config))
    failed: dict[str, str] = {}
    began = time.monotonic()
    try:
        for task in loader.tasks:
            label = f"{task.name} of {model_name(path)}" if several else task.name
            error = yield from _evaluate_task(collected, _work(model, loader, task, label, config), label, stop)
            if error is not None:
                failed[task.name] = explain(error)
                if reported.get(task.name) != failed[task.name]:
                    yield Notice(f"{task.name} is not evaluated: {failed[task.name]}", "warning")
    finally:
        answers.close()
    outcome = ModelOutcome(collected.finish(model, _info(model, time.monotonic() - began, failed)), failed)
    if config.output is not None and outcome.results["results"]:
        template = model.text.chat_template if config.chat else None
        outcome.path = collected.save(config.output, outcome.results, template, config.system)
    if not failed and config.use_cache is None:
        file.unlink(missing_ok=True)
    return outcome


def _evaluate_task(
    results: Results, work: Work, label: str, stop: threading.Event
) -> Generator[Event, None, Exception | None]:
    """Adds a task's results; returns the error instead if it fails."""
    yield Progress(label, 0, None, "requests")
    try:
        results.add((yield from in_thread(work, stop)))
    except (Interrupted, KeyboardInterrupt, MemoryError):
        raise
    except Exception as error:  # tasks run code of their own, which may raise anything
        if os.environ.get("SYNTHE_TRACEBACK"):
            logging.exception(label)
        return error
    return None


def _work(model: Any, loader: Loader, task: TaskRequest, label: str, config: EvalConfig) -> Work:
    """The evaluation of one task or group, as a call that reports its progress."""

    def work(report: Callable[[Event], None]) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate as harness

        def progress(kind: str, done: int, total: int, eta: float | None) -> None:
            report(Progress(label, done, total, "requests", eta))

        model.report = progress
        os.environ["DISABLE_MULTIPROC"] = "1"  # the bootstrap would fork a process that has threads
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        random.seed(0)
        np.random.seed(FEWSHOT_SEED)
        torch.manual_seed(FEWSHOT_SEED)
        return harness(
            lm=model,
            task_dict=loader.load(task, model.text, config.num_fewshot),
            limit=config.limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=config.log_samples,
            system_instruction=config.system,
            apply_chat_template=config.chat,
            fewshot_as_multiturn=config.chat,
        )

    return work


def _answers_file(path: Path, model: Any, config: EvalConfig) -> Path:
    name = f"answers-{model.digest()}.jsonl"
    if config.use_cache is not None:
        return config.use_cache / name
    if config.output is not None:
        return results_folder(config.output, path) / name
    return cache_dir() / "evaluation" / name


def _settings(model: Any, config: EvalConfig) -> dict[str, Any]:
    """The rest of `config` in the harness's results."""
    return {
        "batch_size": config.batch_size or "auto",
        "batch_sizes": [],
        "device": model.device,
        "use_cache": None if config.use_cache is None else str(config.use_cache),
        "limit": config.limit,
        "bootstrap_iters": BOOTSTRAP,
        "gen_kwargs": None,
        "random_seed": 0,
        "numpy_seed": FEWSHOT_SEED,
        "torch_seed": FEWSHOT_SEED,
        "fewshot_seed": FEWSHOT_SEED,
    }


def _info(model: Any, seconds: float, failed: dict[str, str]) -> dict[str, Any]:
    """What synthe adds to the harness's results."""
    opened, text = model.opened, model.text
    cut = "cut into windows" if model.limit is not None else "run as they are"
    return {
        "checkpoint": source_name(opened.path),
        "step": opened.step,
        "recipe": opened.name,
        "recipe_digest": opened.recipe_digest,
        "hardware": describe_hardware(probe()),
        "device": model.device,
        "versions": package_versions(),
        "seconds": seconds,
        "tokens": asdict(model.reader.counts),
        "context_prefix": "".join(text.spelling(token) for token in model.prefix) or None,
        "empty_context": text.spelling(model.prefix_token_id),
        "length": {"trained": model.trained, "limit": model.limit, "longer": model.longer, "longer_are": cut},
        "failed": failed,
    }
