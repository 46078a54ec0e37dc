"""`synthe eval`: quality of a trained model on tasks and on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.eval_chat import EXAMPLES as CHAT_EXAMPLES
from synthe_cli.commands.eval_chat import chat
from synthe_cli.commands.eval_classify import EXAMPLES as CLASSIFY_EXAMPLES
from synthe_cli.commands.eval_classify import classify
from synthe_cli.commands.eval_document import EXAMPLES as DOCUMENT_EXAMPLES
from synthe_cli.commands.eval_document import document
from synthe_cli.commands.eval_lm import LIST_EXAMPLES, LM_EXAMPLES, list_tasks, lm
from synthe_cli.commands.eval_perplexity import EXAMPLES as PERPLEXITY_EXAMPLES
from synthe_cli.commands.eval_perplexity import perplexity
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import CheckpointArgument, DataOption, DeviceOption, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Result, results

ABOUT = "Evaluate trained models on tasks and on text."

app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)


@app.callback(help=ABOUT)
def evaluate() -> None: ...


app.command("lm", cls=Command, short_help="Run tasks of lm-evaluation-harness.", epilog=LM_EXAMPLES)(lm)
app.command(
    "perplexity", cls=Command, short_help="Measure bits per byte by context length.", epilog=PERPLEXITY_EXAMPLES
)(perplexity)
app.command(
    "document", cls=Command, short_help="Ask about a document, by how the model knows it.", epilog=DOCUMENT_EXAMPLES
)(document)
app.command("chat", cls=Command, short_help="Rate answers in conversations by a judge.", epilog=CHAT_EXAMPLES)(chat)
app.command("classify", cls=Command, short_help="Classify labelled texts.", epilog=CLASSIFY_EXAMPLES)(classify)
app.command("list", cls=Command, short_help="List the suites and tasks.", epilog=LIST_EXAMPLES)(list_tasks)


@app.command(
    cls=Command,
    short_help="Measure how well a model is calibrated.",
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
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Maximum number of tokens to read.")
    ] = 131_072,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Write a chart to this .html or .svg file.")
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well confidence scores predict whether the most likely next token is correct.

    The scores are the probability of that token (max-softmax), the model's confidence head if it has one, and the
    signals of its learners. ECE is the expected calibration error in 15 bins of equal mass, for scores that are
    probabilities. AUROC measures how well a score separates correct from wrong tokens. AURC is the area under the
    risk-coverage curve.
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
    """A row for each score, below a title line."""
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
    title = f"{values['tokens']:,} held-out tokens, {right:.1%} correct; AURC of a random score is "
    title += f"{1 - right:.4f}, of an ideal score {values['ideal_aurc']:.4f}"
    return f"{title}\n\n" + figures.table(["score", "ECE", "AUROC", "AURC", "errors in top half"], rows)
