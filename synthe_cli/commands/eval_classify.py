"""`synthe eval classify`: an encoder on labelled texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.options import CheckpointArgument, DataOption, DeviceOption, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Result, results

EXAMPLES = """\
synthe eval classify runs/tlm-encoder-tiny                            on the validation text of its own recipe
synthe eval classify runs/topics --data test.jsonl --labels field:topic --field body
synthe eval classify runs/topics --data texts/ --plot confusion.svg   one folder a class
synthe eval classify runs/topics --data test.csv --labels field:topic --json | jq .values.confusion"""
MATRIX = 20  # classes whose confusion matrix fits a terminal
PAIRS = 10  # confusions that are listed of more classes


def classify(
    checkpoint: CheckpointArgument,
    data: DataOption = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="path|field:NAME", help="Where a text's class is. Default: as in the recipe."),
    ] = None,
    field: Annotated[
        str | None, typer.Option("--field", metavar="NAME", help="Field of rows of tables that holds the text.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, metavar="N", help="At most N texts, spread evenly over all of them.")
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Draw confusions and calibration into this .html or .svg file."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Classify labelled texts with an encoder: accuracy, every class, confusions and calibration.

    The accuracy has a 95% interval (Wilson); chance is that of always giving the most frequent class. A text longer
    than the training sequence is read in passages, whose probabilities are averaged. In the confusion matrix rows are
    the texts' classes, columns the ones given.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.evaluation.classify import evaluate

    with choose_renderer(as_json) as shown:
        events = evaluate(
            path, sources=data or (), labels=labels, field=field, limit=limit, device=device or "auto", plot=plot
        )
        for result in results(events, shown.show):
            if not as_json:
                shown.close()
                print(_table(result.values))
                result = Result(path=result.path)
            shown.result(result)


def _table(values: dict[str, Any]) -> str:
    classes = values["classes"]
    title = f"{values['texts']:,} texts, {values['accuracy']:.1%} correct "
    title += f"({values['low']:.1%} to {values['high']:.1%}); chance {values['chance']:.1%}\n"
    title += f"macro F1 {values['macro_f1']:.3f}, {values['nats']:.3f} nats a text, ECE {values['ece']:.3f}"
    if values["passages"] > values["texts"]:
        title += f"; {values['passages']:,} passages"
    rows = [
        [
            f"{number}  {each['name']}",
            f"{each['texts']:,}",
            f"{each['predicted']:,}",
            f"{each['precision']:.1%}",
            f"{each['recall']:.1%}",
            f"{each['f1']:.3f}",
        ]
        for number, each in enumerate(classes, 1)
    ]
    scores = figures.table(["class", "texts", "given", "precision", "recall", "F1"], rows)
    return f"{title}\n\n{scores}\n\n{_confusions(classes, values['confusion'])}"


def _confusions(classes: list[dict[str, Any]], matrix: list[list[int]]) -> str:
    """The matrix, its columns by number; of many classes the most frequent confusions."""
    if len(classes) <= MATRIX:
        heads = ["confusions", *(str(number) for number in range(1, len(classes) + 1))]
        rows = [
            [f"{number}  {each['name']}", *(str(count) if count else "." for count in matrix[number - 1])]
            for number, each in enumerate(classes, 1)
        ]
        return figures.table(heads, rows)
    pairs = sorted(
        ((count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count),
        key=lambda pair: (-pair[0], pair[1:]),
    )
    rows = [[classes[i]["name"], classes[j]["name"], str(count)] for count, i, j in pairs[:PAIRS]]
    return figures.table(["class", "given", "texts"], rows, left=2)
