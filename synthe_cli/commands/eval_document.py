"""`synthe eval document`: questions about a document, by how the model knows it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.options import AdapterOption, CheckpointArgument, DeviceOption, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results
from synthe_core.units import format_size

EXAMPLES = """\
synthe eval document models/smollm2 --document handbook.pdf --questions questions.jsonl
synthe eval document models/smollm2 --document handbook.pdf --questions questions.jsonl --adapter runs/handbook"""


def document(
    checkpoint: CheckpointArgument,
    text: Annotated[
        Path, typer.Option("--document", metavar="FILE", help="The text, HTML, PDF or Word file of the questions.")
    ],
    questions: Annotated[
        Path,
        typer.Option("--questions", metavar="FILE", help="JSON lines: question, answers (accepted ones), distractors."),
    ],
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a model about a document: without it, with it in context, with a saved state, and with an adapter.

    `contained` is the share of answers that contain an accepted one, `choice` how often the accepted answer is likelier
    than every distractor, and `nats` its -log p per token. `once` is the time until the first question, and
    `each` that of a question after it. `size` is what stores the document beside the model.
    """
    path = find_checkpoint(checkpoint)

    from synthe_cli.hub_models import find_model
    from synthe_core.evaluation.document_questions import evaluate

    applied = find_model(adapter) if adapter else None
    with choose_renderer(as_json) as shown:
        events = evaluate(path, text, questions, adapter=applied, device=device or "auto")
        for result in results(events, shown.show):
            if as_json:
                shown.result(result)
            else:
                shown.close()
                print(_table(result.values))


def _table(values: dict[str, Any]) -> str:
    rows = [
        [
            each["way"],
            f"{each['accuracy']:.1%}",
            "-" if each["choice"] is None else f"{each['choice']:.1%}",
            f"{each['nats']:.3f}",
            f"{each['preparation']:.2f} s",
            f"{each['seconds']:.2f} s",
            format_size(each["bytes"]) if each["bytes"] else "-",
        ]
        for each in values["ways"]
    ]
    title = f"{values['questions']} questions about {values['document']}"
    return f"{title}\n\n" + figures.table(["way", "contained", "choice", "nats", "once", "each", "size"], rows)
