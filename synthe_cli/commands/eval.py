"""`synthe eval`: what a trained model is worth on text that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.eval_lm import LIST_EXAMPLES, LM_EXAMPLES, list_tasks, lm
from synthe_cli.commands.eval_perplexity import EXAMPLES as PERPLEXITY_EXAMPLES
from synthe_cli.commands.eval_perplexity import perplexity
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import CheckpointArgument, DataOption, DeviceOption, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Result, results

ABOUT = "Evaluate trained models on tasks and on new text."

app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)


@app.callback(help=ABOUT)
def evaluate() -> None: ...


app.command("lm", cls=Command, short_help="The tasks of lm-evaluation-harness.", epilog=LM_EXAMPLES)(lm)
app.command("perplexity", cls=Command, short_help="Bits per byte by context.", epilog=PERPLEXITY_EXAMPLES)(perplexity)
app.command("list", cls=Command, short_help="The suites and tasks that there are.", epilog=LIST_EXAMPLES)(list_tasks)


@app.command(
    cls=Command,
    short_help="Whether a model knows when it is right.",
    epilog="""\
synthe eval confidence runs/tiny                              on the validation text of its own recipe
synthe eval confidence runs/tiny --plot confidence.html       the reliability diagram, and risk against coverage
synthe eval confidence runs/tiny --data 'books/*.txt' --tokens 1000000
synthe eval confidence runs/tiny --json | jq .values.scores
synthe train tiny --set model.confidence={} | synthe eval confidence -    with the calibrated head""",
)
def confidence(
    checkpoint: CheckpointArgument,
    data: DataOption = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Read at most so many.")] = 131_072,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw into this file, .html or .svg.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare how well scores of confidence tell whether the likeliest next token is right.

    The scores are the probability of that token (max-softmax), the calibrated head of a model that has one, and the
    signals that its learners publish. ECE is the expected calibration error in 15 bins of equal mass, of what is a
    probability; AUROC how well a score tells right from wrong; AURC the area under the risk-coverage curve.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.evaluation.confidence import evaluate

    with choose_renderer(as_json) as shown:
        events = evaluate(path, sources=data or (), tokens=tokens, device=device or "auto", plot=plot)
        for result in results(events, shown.show):
            if not as_json:
                shown.close()
                print(_table(result.values))
                result = Result(path=result.path)
            shown.result(result)


def _table(values: dict[str, Any]) -> str:
    """A line for each score, under what all of them are about."""
    rows = [
        [
            each["score"],
            "-" if each["ece"] is None else f"{each['ece']:.4f}",
            f"{each['auroc']:.4f}",
            f"{each['aurc']:.4f}",
            f"{each['half']:.1%}",
        ]
        for each in values["scores"]
    ]
    right = values["accuracy"]
    title = f"{values['tokens']:,} held-out tokens, {right:.1%} right; AURC is {1 - right:.4f} for a score that knows "
    title += f"nothing, {values['ideal_aurc']:.4f} for one that knows all"
    return f"{title}\n\n" + figures.table(["score", "ECE", "AUROC", "AURC", "wrong in top half"], rows)
