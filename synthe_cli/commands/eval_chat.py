"""`synthe eval chat`: answers to questions of several turns, judged by a model."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.hub_models import find_model
from synthe_cli.options import DeviceOption, EvalWeightsOption, JsonOption, complete_run
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.events import Result, results

EXAMPLES = """\
synthe eval chat models/smollm2 --questions mt_bench.jsonl --judge models/judge
synthe eval chat models/smollm2 runs/sft --questions mt_bench.jsonl --judge models/judge     and beside each other
synthe eval chat runs/sft --questions mt_bench.jsonl --judge https://api.openai.com/v1#gpt-4.1 --out answers.jsonl
synthe eval chat http://127.0.0.1:6900/v1#swarm --questions mt_bench.jsonl --judge models/judge --json"""


def chat(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Models to evaluate: runs, files, folders, ORG/NAME of the hub, or URL#NAME of a server.",
            autocompletion=complete_run,
        ),
    ],
    questions: Annotated[
        Path,
        typer.Option("--questions", metavar="FILE", help="JSON lines with `turns`, as MT-Bench's question.jsonl."),
    ],
    judge: Annotated[
        str, typer.Option("--judge", metavar="MODEL", help="The model that judges: as MODEL, or URL#NAME of a server.")
    ],
    limit: Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="The first N questions.")] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="Tokens of an answer at most.")
    ] = 1024,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="Store answers and judgements; a repeated command resumes."),
    ] = None,
    weights: EvalWeightsOption = "auto",
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rate answers from 1 to 10, and compare models.

    Each model answers the turns of every question greedily. The judge rates each answer; with several models it also
    compares them in both orders, where only a verdict that both orders share is a win. Means have 95% intervals over
    questions. A small judge says little: choose one that is stronger than what it judges. The key of a server is read
    from SYNTHE_API_KEY or OPENAI_API_KEY.
    """
    paths = {name: None if "://" in name else find_model(name) for name in dict.fromkeys([*models, judge])}

    from synthe_core.evaluation.chat.judge import Judge
    from synthe_core.evaluation.chat.models import open_chat_model
    from synthe_core.evaluation.chat.questions import read_questions
    from synthe_core.evaluation.chat.run import ChatEvaluation, evaluate_chat
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe

    config = ChatEvaluation(read_questions(questions, limit), max_tokens, out)
    where = choose_device(device or "auto", probe()).value
    with ExitStack() as stack, choose_renderer(as_json) as shown:
        opened = {
            name: stack.enter_context(open_chat_model(name, path, where, weights)) for name, path in paths.items()
        }
        stop = stack.enter_context(stop_on_signal("the answers so far are stored" if out else "nothing is stored"))
        chosen = [opened[name] for name in dict.fromkeys(models)]
        for result in results(evaluate_chat(chosen, Judge(opened[judge]), config, stop), shown.show):
            if as_json:
                shown.result(result)
                continue
            shown.close()
            print(_table(result.values))
            shown.result(Result(path=result.path))


def _table(values: dict[str, Any]) -> str:
    turns = max(len(each["turns"]) for each in values["models"])
    heads = ["model", "rating", *(f"turn {turn + 1}" for turn in range(turns)), "not judged"]
    rows = [
        [each["model"], _interval(each["rating"]), *(_value(turn) for turn in each["turns"]), str(each["not_judged"])]
        for each in values["models"]
    ]
    parts = [f"questions: {values['questions']}, judged by {values['judge']}", figures.table(heads, rows)]
    if values["comparisons"]:
        heads = ["first", "second", "first wins", "ties", "orders disagree", "not judged"]
        rows = [
            [each["first"], each["second"], _interval(each["first_wins"], share=True),
             *(str(each[name]) for name in ("ties", "orders_disagree", "not_judged"))]
            for each in values["comparisons"]
        ]  # fmt: skip
        parts.append(figures.table(heads, rows, left=2))
    return "\n\n".join(parts)


def _value(mean: dict[str, float] | None) -> str:
    return "-" if mean is None else f"{mean['value']:.2f}"


def _interval(mean: dict[str, float] | None, share: bool = False) -> str:
    if mean is None:
        return "-"
    form = "{value:.0%} ({low:.0%} to {high:.0%})" if share else "{value:.2f} ({low:.2f} to {high:.2f})"
    return form.format(**mean)
