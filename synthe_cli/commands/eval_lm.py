"""`synthe eval lm` and `synthe eval list`: the tasks of lm-evaluation-harness."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.escape import escaped, json_text, printable
from synthe_cli.options import (
    DeviceOption,
    EvalWeightsOption,
    JsonOption,
    MemoryOption,
    complete_run,
    find_checkpoint,
    memory_size,
)
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError
from synthe_core.events import Result, results
from synthe_core.units import format_count

LM_EXAMPLES = """\
synthe eval lm runs/60m --tasks hellaswag,arc_easy,lambada_openai --limit 100
synthe eval lm runs/60m runs/mamba-60m --suite zero-shot           several models, compared
synthe eval lm runs/60m --tasks my_task.yaml --include-path tasks/ --output results/ --log-samples
synthe eval lm runs/60m --suite my-suite.yaml --output results/ --resume     resumes an interrupted run
synthe eval lm runs/60m --tasks mmlu --num-fewshot 5 --use-cache answers/
synthe eval lm model.gguf --weights as_stored --tasks arc_easy     with the matrices as the file has them
synthe train recipes/tiny.yaml | synthe eval lm - --tasks wikitext"""

LIST_EXAMPLES = """\
synthe eval list                     the suites, and the number of tasks
synthe eval list arc                 tasks whose name contains `arc`
synthe eval list 'blimp_*' --json"""


def lm(
    checkpoints: Annotated[
        list[str],
        typer.Argument(
            metavar="CHECKPOINT...",
            help="Runs, checkpoints, model files or folders, or ORG/NAME of the hub. - reads a path from stdin.",
            autocompletion=complete_run,
        ),
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--tasks", "-t", metavar="NAMES", help="Names, patterns or YAML files, comma-separated. Repeatable."
        ),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="NAME", help="Name or YAML file of a suite. Repeatable."),
    ] = None,
    include_path: Annotated[
        list[Path] | None,
        typer.Option("--include-path", metavar="DIR", help="Folder with more tasks. Repeatable."),
    ] = None,
    limit: Annotated[
        float | None,
        typer.Option("--limit", metavar="N", help="Only the first N questions of each task. Below 1: that share."),
    ] = None,
    num_fewshot: Annotated[
        int | None, typer.Option("--num-fewshot", min=0, metavar="N", help="Number of examples before each question.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="DIR", help="Write results_*.json to this folder, in a subfolder per model."
        ),
    ] = None,
    log_samples: Annotated[
        bool, typer.Option("--log-samples", help="Also write every question and answer to samples_*.jsonl.")
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an interrupted run from its saved answers.")] = False,
    use_cache: Annotated[
        Path | None,
        typer.Option("--use-cache", metavar="DIR", help="Cache answers in this folder and reuse them."),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option("--batch-size", min=1, metavar="N", help="Sequences per batch. Results do not depend on it."),
    ] = None,
    prefix: Annotated[
        str,
        typer.Option(
            "--prefix",
            metavar="KIND",
            help="Token before each context: begin, end, none, or auto (begin if the tokenizer has it).",
        ),
    ] = "auto",
    max_length: Annotated[
        int | None,
        typer.Option("--max-length", min=2, metavar="N", help="Split requests longer than N tokens into windows."),
    ] = None,
    chat: Annotated[bool, typer.Option("--apply-chat-template", help="Apply the model's chat template.")] = False,
    system: Annotated[str | None, typer.Option("--system-instruction", metavar="TEXT", help="System prompt.")] = None,
    metadata: Annotated[
        str | None,
        typer.Option(
            "--metadata", metavar="JSON", help="Settings of tasks that generate data, as {max_seq_lengths: [1024]}."
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**62, metavar="N", help="Random seed of tasks that sample.")
    ] = 0,
    device: DeviceOption = None,
    weights: EvalWeightsOption = "float32",
    memory: MemoryOption = None,
    as_json: JsonOption = False,
) -> None:
    """Evaluate models on tasks of lm-evaluation-harness, and print its table.

    A context shared by several requests is evaluated once; its state is then copied. If a task's dataset is
    unavailable, it is reported and skipped. Datasets come from the hub or the disk; a local folder with the name of a
    dataset (allenai/ai2_arc) takes precedence.
    """
    if "-" in checkpoints and checkpoints.count("-") > 1:
        raise InputError("- can be used once", "name the other checkpoints")
    paths = [find_checkpoint(each) for each in checkpoints]

    from synthe_core.evaluation.lm import EvalConfig, evaluate

    config = EvalConfig(
        tasks=_names(tasks),
        suites=_names(suite),
        include=include_path or (),
        limit=_limit(limit),
        num_fewshot=num_fewshot,
        metadata=_metadata(metadata),
        batch_size=batch_size,
        device=device or "auto",
        weights=weights,
        memory=memory_size(memory),
        prefix=prefix,
        max_length=max_length,
        output=output,
        log_samples=log_samples,
        resume=resume,
        use_cache=use_cache,
        chat=chat,
        system=system,
        seed=seed,
    )
    with choose_renderer(as_json) as shown, stop_on_signal("finished answers are saved") as stop:
        for result in results(evaluate(paths, config, stop), shown.show):
            if not as_json:
                shown.close()
                show(result.values["models"])  # type: ignore[arg-type]
                result = Result(path=result.path)
            shown.result(result)


def list_tasks(
    pattern: Annotated[
        str | None, typer.Argument(metavar="[PATTERN]", help="Part of a name, or a pattern as 'blimp_*'.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """List the suites, and the tasks whose name matches a pattern."""
    from synthe_core.evaluation.suites import load_suite, suites
    from synthe_core.evaluation.task_index import names

    matches = names(pattern)
    if pattern is None:
        loaded = {name: load_suite(str(path)) for name, path in sorted(suites().items())}
        kinds = [entry["kind"] for entry in matches.values()]
        counts = {kind: kinds.count(kind) for kind in ("task", "group", "tag")}
        if as_json:
            listing = {name: each.model_dump(mode="json") for name, each in loaded.items()}
            print(json.dumps({"suites": listing, **{f"{kind}s": count for kind, count in counts.items()}}))
            return
        rows = [[name, each.description, ", ".join(e.task for e in each.entries)] for name, each in loaded.items()]
        print(figures.table(["suite", "what", "tasks"], rows, left=3))
        print(f"\n{counts['task']:,} tasks, {counts['group']:,} groups, {counts['tag']:,} tags: synthe eval list PART")
        return
    if as_json:
        print(json_text(matches))
        return
    if not matches:
        from synthe_core.errors import unknown

        raise unknown("task", pattern, names(None))
    rows = [[name, entry["kind"], entry["path"] or ", ".join(entry["tags"])] for name, entry in matches.items()]
    print(figures.table(["name", "kind", "where"], rows, left=3))


def show(models: list[dict[str, Any]]) -> None:
    """Prints the harness's table of one model, or a comparison of several, and the conditions of each result."""
    models = [model for model in models if model["results"]]
    if len(models) == 1:
        from lm_eval.utils import make_table

        print(printable(make_table(models[0])).rstrip())
        if models[0].get("groups"):
            print("\n" + printable(make_table(models[0], "groups")).rstrip())
    elif models:
        print(side_by_side(models))
    for model in models:
        print(("\n" if model is models[0] else "") + escaped(conditions(model["synthe"])))


def side_by_side(models: list[dict[str, Any]]) -> str:
    """A row for each metric of each task, a column for each model. The best value of a row is marked."""
    rows = []
    tasks = dict.fromkeys(task for model in models for task in model["results"])
    for task in tasks:
        metrics = dict.fromkeys(
            key for model in models for key in model["results"].get(task, {}) if "," in key and "_stderr," not in key
        )
        for key in metrics:
            metric = key.partition(",")[0]
            values = [model["results"].get(task, {}).get(key) for model in models]
            higher = next(
                (model["higher_is_better"][task].get(metric) for model in models if task in model["higher_is_better"]),
                None,
            )
            errors = [model["results"].get(task, {}).get(key.replace(",", "_stderr,")) for model in models]
            rows.append([task, metric, {True: "↑", False: "↓"}.get(higher, ""), *_cells(values, errors, higher)])  # type: ignore[arg-type]
    heads = [Path(model["config"]["model_args"]["path"]).name for model in models]
    if len(set(heads)) < len(heads):
        heads = [model["config"]["model_args"]["path"] for model in models]
    return figures.table(["task", "metric", "", *heads], rows, left=3)


def _cells(values: list[Any], errors: list[Any], higher: bool | None) -> list[str]:
    numbers = [value for value in values if isinstance(value, (int, float))]
    best = None if higher is None or len(numbers) < 2 else (max if higher else min)(numbers)
    cells = []
    for value, error in zip(values, errors, strict=True):
        if not isinstance(value, (int, float)):
            cells.append("-" if value is None else str(value))
            continue
        spread = f" ± {_number(error)}" if isinstance(error, (int, float)) else ""
        cells.append(f"{'*' if value == best and numbers.count(best) == 1 else ''}{_number(value)}{spread}")
    return cells


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 10_000 else f"{value:.4g}"


def conditions(facts: dict[str, Any]) -> str:
    """One line with the conditions of a model's results: recipe, prefix, tokens, time and device."""
    tokens, length = facts["tokens"], facts["length"]
    requested = tokens["requested"] + tokens["generated"]
    prefix = facts["context_prefix"] or "nothing"
    parts = [
        f"{facts['recipe']} {facts['recipe_digest']}",
        f"{prefix} before a context, {facts['empty_context']} for an empty one",
        f"{format_count(tokens['computed'])} tokens computed for {format_count(requested)}",
        f"{figures.duration(facts['seconds'])} on {facts['device']}",
    ]
    if length["longer"]:
        many = f"{length['longer']:,} requests longer than the training sequence of {length['trained']:,} tokens"
        parts.append(f"{many} {length['longer_are']}")
    return "; ".join(parts)


def _names(values: list[str] | None) -> list[str]:
    return [name.strip() for each in values or [] for name in each.split(",") if name.strip()]


def _limit(limit: float | None) -> float | None:
    if limit is None:
        return None
    if not limit > 0 or (limit >= 1 and limit % 1):
        raise InputError(f"--limit {limit:g} is not valid", "use a whole number, or a share between 0 and 1")
    return int(limit) if limit >= 1 else limit


def _metadata(text: str | None) -> dict[str, Any]:
    if text is None:
        return {}
    import yaml

    try:
        metadata = yaml.safe_load(text)
    except yaml.YAMLError:
        metadata = None
    if not isinstance(metadata, dict):
        raise InputError(f"--metadata {text}: expected a mapping", 'for example {"max_seq_lengths": [1024, 4096]}')
    return metadata
