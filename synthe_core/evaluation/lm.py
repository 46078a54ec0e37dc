"""The verb `eval lm`: checkpoints on the tasks of lm-evaluation-harness."""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from synthe_core.errors import InputError, Interrupted, WorkError
from synthe_core.evaluation.answers import Answers
from synthe_core.evaluation.harness_results import Results, check_output, folder_of
from synthe_core.evaluation.harness_tasks import FEWSHOT_SEED, Loader, Wanted, explain
from synthe_core.evaluation.hub_access import settled
from synthe_core.evaluation.in_thread import in_thread
from synthe_core.evaluation.suites import Entry, load_suite
from synthe_core.events import Event, Notice, Progress, Result
from synthe_core.hardware.probe import cache_dir, probe
from synthe_core.storage.manifest import describe_hardware, package_versions

BOOTSTRAP = 1000  # resamples for the error of a metric that has no formula; the harness's 100,000 take minutes


@dataclass(frozen=True)
class Asked:
    """What is to be evaluated, and how.

    tasks: names, patterns and YAML files. suites: names and files of suites. include: folders of more tasks.
    limit: the first N questions of each task, or below 1 a share. num_fewshot: examples before each question, instead
    of the tasks' own. metadata: for tasks that make their data by it. output: the folder for results. log_samples: and
    every question with its answer. resume: answers of an interrupted run are taken as they are. use_cache: a folder
    that keeps answers for good. chat: through the model's chat template; system: what is said first there.
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
    prefix: str = "auto"
    max_length: int | None = None
    output: Path | None = None
    log_samples: bool = False
    resume: bool = False
    use_cache: Path | None = None
    chat: bool = False
    system: str | None = None
    seed: int = 0


def evaluate(paths: Sequence[Path], asked: Asked, stop: threading.Event | None = None) -> Iterator[Event]:
    """Evaluates each checkpoint on each task and yields events; the last is a Result with what the harness gives.

    A task that fails is a warning, and the others run; WorkError at the end then. Interrupted by `stop`, the answers
    made so far are kept for `resume`.
    """
    stop = stop or threading.Event()
    check_output(asked.output)
    if asked.log_samples and asked.output is None:
        raise InputError("--log-samples writes files, and there is no folder for them", "name one with --output")
    entries = [Entry(task=name) for name in asked.tasks]
    metadata = dict(asked.metadata)
    for name in asked.suites:
        suite = load_suite(name)
        entries += suite.entries
        metadata = suite.metadata | metadata
    if not entries:
        raise InputError("nothing to evaluate", "name --tasks or a --suite; `synthe eval list` shows them")
    models = [_open(path, asked) for path in paths]
    yield Notice("finding the tasks")
    loader = Loader(entries, asked.include, metadata)
    with settled() as reached:
        if not reached:
            yield Notice("the hub is not reached: data sets are read from disk alone")
        written: Path | None = None
        whole, failed = [], dict[str, str]()
        for path, model in zip(paths, models, strict=True):
            found, broken, written = yield from _one(path, model, loader, asked, stop, len(paths) > 1, failed)
            whole.append(found)
            failed |= broken
    yield Result({"models": whole}, written)
    if failed:
        count = len(loader.wanted)
        raise WorkError(
            f"{len(failed)} of {count} tasks failed: {', '.join(failed)}", "the lines above say why; the rest is kept"
        )


def _open(path: Path, asked: Asked) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    from synthe_core.evaluation.harness_model import Synthe

    return Synthe(
        path,
        device=asked.device,
        batch_size=asked.batch_size,
        prefix=asked.prefix,
        max_length=asked.max_length,
        seed=asked.seed,
    )


def _one(
    path: Path,
    model: Any,
    loader: Loader,
    asked: Asked,
    stop: threading.Event,
    several: bool,
    told: dict[str, str],
) -> Generator[Event, None, tuple[dict[str, Any], dict[str, str], Path | None]]:
    """(results, failures, results file) of one model; failures that were `told` of one before are not told again."""
    file = _answers_file(path, model, asked)
    if not asked.resume and asked.use_cache is None:
        file.unlink(missing_ok=True)
    answers = model.answers = Answers(file)
    if len(answers):
        yield Notice(f"{len(answers):,} answers of before are at hand")

    def check() -> None:
        if stop.is_set():
            raise Interrupted(
                f"interrupted: {len(answers):,} answers are kept", "the same command with --resume goes on from there"
            )

    model.reader.check = check
    results = Results(path, _settings(model, asked))
    failed: dict[str, str] = {}
    seconds = 0.0
    try:
        for wanted in loader.wanted:
            label = f"{wanted.name} of {path.name}" if several else wanted.name
            yield Progress(label, 0, None, "requests")
            began = time.monotonic()
            try:
                work = _work(model, loader, wanted, label, asked)
                results.add((yield from in_thread(work, stop)))
            except (Interrupted, KeyboardInterrupt, MemoryError):
                raise
            except Exception as error:  # tasks run code of their own, and raise what they like
                if os.environ.get("SYNTHE_TRACEBACK"):
                    logging.exception(wanted.name)
                failed[wanted.name] = explain(error)
                if told.get(wanted.name) != failed[wanted.name]:
                    yield Notice(f"{wanted.name} is not evaluated: {failed[wanted.name]}", "warning")
            seconds += time.monotonic() - began
    finally:
        answers.close()
    found = results.finish(model, _facts(model, seconds, failed))
    written = None
    if asked.output is not None and found["results"]:
        template = model.text.chat_template if asked.chat else None
        written = results.save(asked.output, found, template, asked.system)
    if not failed and asked.use_cache is None:
        file.unlink(missing_ok=True)
    return found, failed, written


def _work(
    model: Any, loader: Loader, wanted: Wanted, label: str, asked: Asked
) -> Callable[[Callable[[Event], None]], dict[str, Any]]:
    """The evaluation of one task or group, as a call that tells of its progress."""

    def work(tell: Callable[[Event], None]) -> dict[str, Any]:
        from lm_eval.evaluator import evaluate as harness

        def progress(kind: str, done: int, total: int, eta: float | None) -> None:
            tell(Progress(label, done, total, "requests", eta))

        model.tell = progress
        os.environ["DISABLE_MULTIPROC"] = "1"  # the bootstrap would fork a process that has threads
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        random.seed(0)
        np.random.seed(FEWSHOT_SEED)
        torch.manual_seed(FEWSHOT_SEED)
        return harness(
            lm=model,
            task_dict=loader.load(wanted, model.text, asked.num_fewshot),
            limit=asked.limit,
            bootstrap_iters=BOOTSTRAP,
            log_samples=asked.log_samples,
            system_instruction=asked.system,
            apply_chat_template=asked.chat,
            fewshot_as_multiturn=asked.chat,
        )

    return work


def _answers_file(path: Path, model: Any, asked: Asked) -> Path:
    name = f"answers-{model.digest()}.jsonl"
    if asked.use_cache is not None:
        return asked.use_cache / name
    if asked.output is not None:
        return folder_of(asked.output, path) / name
    return cache_dir() / "evaluation" / name


def _settings(model: Any, asked: Asked) -> dict[str, Any]:
    """The rest of `config` in the harness's results."""
    return {
        "batch_size": asked.batch_size or "auto",
        "batch_sizes": [],
        "device": model.device,
        "use_cache": None if asked.use_cache is None else str(asked.use_cache),
        "limit": asked.limit,
        "bootstrap_iters": BOOTSTRAP,
        "gen_kwargs": None,
        "random_seed": 0,
        "numpy_seed": FEWSHOT_SEED,
        "torch_seed": FEWSHOT_SEED,
        "fewshot_seed": FEWSHOT_SEED,
    }


def _facts(model: Any, seconds: float, failed: dict[str, str]) -> dict[str, Any]:
    """What the harness does not know."""
    checkpoint, text = model.checkpoint, model.text
    cut = "cut into windows" if model.limit is not None else "run as they are"
    return {
        "checkpoint": str(checkpoint.path),
        "step": checkpoint.manifest.step,
        "recipe": checkpoint.recipe.name,
        "recipe_digest": checkpoint.recipe.digest(),
        "hardware": describe_hardware(probe()),
        "device": model.device,
        "versions": package_versions(),
        "seconds": seconds,
        "tokens": asdict(model.reader.effort),
        "context_prefix": "".join(text.spelling(token) for token in model.prefix) or None,
        "empty_context": text.spelling(model.prefix_token_id),
        "length": {"trained": model.trained, "limit": model.limit, "longer": model.longer, "longer_are": cut},
        "failed": failed,
    }
