"""`synthe eval perplexity`: bits per byte by context length."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.options import (
    CheckpointArgument,
    DataOption,
    DeviceOption,
    EvalWeightsOption,
    JsonOption,
    MemoryOption,
    find_checkpoint,
    memory_size,
)
from synthe_cli.pathways_option import PathwaysOption
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import InputError
from synthe_core.events import results
from synthe_core.units import format_size, parse_length

EXAMPLES = """\
synthe eval perplexity runs/60m                                        on the validation text of its own recipe
synthe eval perplexity runs/60m --data book.txt --context 512,2k,8k,32k
synthe eval perplexity runs/60m --data 'books/*.txt' --tokens 1000000 --json
synthe eval perplexity model.gguf --data book.txt --weights int4       what the format of the matrices costs
synthe eval perplexity runs/1.3b --data book.txt --memory 2GiB         a model that is larger than memory"""


def perplexity(
    checkpoint: CheckpointArgument,
    data: DataOption = None,
    context: Annotated[
        str | None,
        typer.Option(
            "--context", metavar="N,N...", help="Context lengths, as 512,2k,8k. Each must divide the longest."
        ),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Maximum number of tokens to read.")
    ] = 131_072,
    device: DeviceOption = None,
    weights: EvalWeightsOption = "float32",
    memory: MemoryOption = None,
    pathways: PathwaysOption = None,
    as_json: JsonOption = False,
) -> None:
    """Measure how well a model predicts a text, for several context lengths.

    `bits/byte` is measured on the same text for each context length; the model restarts every that many tokens. `at
    positions` is that of the tokens at these positions only, which the model reads on to from position 0.
    """
    path = find_checkpoint(checkpoint)
    contexts = [_length(each) for each in (context or "").split(",") if each.strip()]
    limit = memory_size(memory)

    from synthe_core.evaluation.perplexity import evaluate

    with choose_renderer(as_json) as shown:
        events = evaluate(
            path,
            sources=data or (),
            contexts=contexts,
            tokens=tokens,
            device=device or "auto",
            weights=weights,
            memory=limit,
            pathways=pathways,
        )
        for result in results(events, shown.show):
            if as_json:
                shown.result(result)
            else:
                shown.close()
                print(_table(result.values))


def _length(text: str) -> int:
    try:
        return parse_length(text.strip())
    except ValueError as error:
        raise InputError(f"--context: {error}", "for example 512,2k,8k") from None


def _table(values: dict[str, Any]) -> str:
    rows = [
        [
            f"{each['context']:,}",
            f"{each['bits_per_byte']:.4f}",
            f"{each['perplexity']:.2f}",
            f"{each['first']:,} to {each['last']:,}",
            f"{each['here']:.4f}",
        ]
        for each in values["contexts"]
    ]
    first = values["contexts"][0]
    title = f"{first['tokens']:,} tokens ({format_size(first['bytes'])}) in windows of "
    title += f"{values['contexts'][-1]['context']:,}, {values['windows']:,} of them; "
    title += f"trained on sequences of {values['trained']:,}"
    return f"{title}\n\n" + figures.table(
        ["context", "bits/byte", "perplexity", "positions", "at positions"], rows, left=0
    )
