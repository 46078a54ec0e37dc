"""`synthe data`: prepares, counts and shows training data."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.conversation_table import conversation_table
from synthe_cli.escape import escaped, printable
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import JsonOption, SetOption, find_recipe, overrides, shipped_recipes
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import InputError
from synthe_core.events import Event, Result, results

if TYPE_CHECKING:
    from synthe_core.data.spec import DataSpec
    from synthe_core.recipe.schema import Recipe


class TrainedOn(StrEnum):
    """What of a conversation is trained on."""

    assistant = "assistant"
    last = "last"
    all = "all"


app = typer.Typer(cls=Group, help="Prepare and count training text.", **SETTINGS)

SourceArgument = Annotated[
    str, typer.Argument(metavar="RECIPE_OR_SOURCE", help="A recipe, or a source: file, folder, glob, hub:NAME, stdlib.")
]


@app.command(
    cls=Command,
    short_help="Tokenize text for training.",
    epilog="""\
synthe data prepare recipes/60m.yaml                     before training starts
synthe data prepare 'books/*.txt' --set data.sequence=1024
synthe data prepare recipes/60m.yaml --set data.tokenizer.vocab=32768""",
)
def prepare(source: SourceArgument, assign: SetOption = None, as_json: JsonOption = False) -> None:
    """Read and tokenize text, and cache the tokens for training.

    An interrupted run resumes. `synthe train` prepares its data itself if it is not cached.
    """
    from synthe_core.data.prepare import prepare as verb

    _render(verb(_data_of(source, assign)), as_json, path=True)


@app.command(
    cls=Command,
    short_help="Count text or conversations.",
    epilog="""\
synthe data stats stdlib
synthe data stats my.txt --set data.tokenizer=bpe        with a trained tokenizer
synthe data stats recipes/tiny.yaml --json
synthe data stats chats.jsonl                                        conversations, in characters
synthe data stats chats.jsonl --tokenizer models/smollm2             in tokens, as the model reads them
synthe data stats train.jsonl --set data.validation=held_out.jsonl   and the prompts that are in both
synthe data stats preferences.jsonl --json | jq '.values.sources[0].chosen_longer'""",
)
def stats(
    source: SourceArgument,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            "--tokenizer",
            "-t",
            metavar="MODEL",
            help="The model whose tokens are counted, and whose chat template conversations are read by.",
        ),
    ] = None,
    assign: SetOption = None,
    as_json: JsonOption = False,
) -> None:
    """Count documents, bytes, tokens and bytes per token of each source and split. Prepares the data if needed.

    Of conversations, preferences and ratings: rows by layout, the reasons for which rows are skipped, roles, turns and
    tool calls, the length of prompts and answers, how many rows fit into 512, 1,024 and 2,048 tokens, the share that is
    trained on, and duplicates. Rows that fit show what data.sequence to choose. In preferences, chosen answers that
    are longer than rejected ones teach a model to write at length, whatever it writes.
    """
    from synthe_core.data.conversations.statistics import holds_conversations, statistics
    from synthe_core.data.prepare import stats as verb
    from synthe_core.data.tokenizers import open_tokenizer

    recipe, named = _recipe_of(source, assign)
    spec = recipe.data
    if recipe.reads == "text" and not (not named and holds_conversations(source, spec.field)):
        if tokenizer is not None:
            spec = _recipe_of(source, [*(assign or []), f"data.tokenizer={tokenizer}"])[0].data
        _render(verb(spec), as_json, path=False)
        return
    usual = spec.tokenizer.type if spec.tokenizer.type not in ("bytes", "bpe") else None
    chosen = tokenizer or usual
    opened = None if chosen is None else open_tokenizer(chosen)
    with choose_renderer(as_json) as shown:
        for result in results(statistics(spec, opened), shown.show):
            if as_json:
                shown.result(result)
            else:
                shown.close()
                print(conversation_table(result.values))


@app.command(
    cls=Command,
    short_help="Show conversations as a model reads them.",
    epilog="""\
synthe data preview chats.jsonl --tokenizer models/smollm2           what is trained on is coloured
synthe data preview preferences.jsonl --tokenizer models/smollm2 --rows 2
synthe data preview chats.jsonl --tokenizer runs/tiny --trained last --first 100 --json""",
)
def preview(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="Conversations or preferences: JSON lines, JSON, CSV or Parquet.")
    ],
    tokenizer: Annotated[
        str,
        typer.Option(
            "--tokenizer",
            "-t",
            metavar="MODEL",
            help="The model whose tokenizer and chat template are used: a checkpoint, a GGUF file, or ORG/NAME.",
        ),
    ],
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, metavar="N", help="Number of rows to show.")] = 5,
    first: Annotated[int, typer.Option("--first", min=1, metavar="N", help="The row to begin with.")] = 1,
    trained: Annotated[
        TrainedOn, typer.Option("--trained", help="What is trained on: every answer, the last one, or all text.")
    ] = TrainedOn.assistant,
    as_json: JsonOption = False,
) -> None:
    """Show conversations and preferences as a model reads them, and which of their tokens are trained on.

    Layouts are recognised by their keys: messages, conversations, instruction/output, prompt/completion,
    chosen/rejected, and prompt/completion/label. Rows that cannot be used are skipped with the reason.
    """
    from synthe_core.data.conversations.preview import preview as verb
    from synthe_core.data.tokenizers import open_tokenizer

    if not file.is_file():
        raise InputError(f"no such file: {file}", "give a file of conversations, such as chats.jsonl")
    opened = open_tokenizer(tokenizer)
    with choose_renderer(as_json) as shown:
        for event in verb(file, opened, first=first, count=rows, trained=trained.value):
            if not isinstance(event, Result):
                shown.show(event)
            elif as_json:
                shown.result(event)
            else:
                _print_row(event.values)


def _print_row(values: dict[str, Any]) -> None:
    """A row's texts. What is trained on is green on a terminal, and otherwise stands between [[ and ]]."""
    if "row" not in values:
        print(f"{values['shown']} shown, {values['skipped']} skipped", file=sys.stderr)
        return
    coloured = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    before, after = ("\x1b[32m", "\x1b[0m") if coloured else ("[[", "]]")
    for text in values["texts"]:
        name = "" if text["name"] == "text" else f", {text['name']}"
        counts = f"{text['tokens']:,} tokens, {text['trained']:,} trained on"
        print(f"{escaped(values['row'])}: {values['kind']}{name}, {counts}")
        pieces = ((printable(piece), trained) for piece, trained in text["pieces"])
        print("".join(f"{before}{piece}{after}" if trained else piece for piece, trained in pieces).rstrip("\n"))
        print()


def _data_of(text: str, assignments: list[str] | None) -> DataSpec:
    """The `data` section of a recipe; or the default one with `text` as its source. --set is applied."""
    return _recipe_of(text, assignments)[0].data


def _recipe_of(text: str, assignments: list[str] | None) -> tuple[Recipe, bool]:
    """A recipe and true; or one without a model, with `text` as its source, and false. --set is applied."""
    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage.yaml_reader import parse_yaml

    path = Path(text).expanduser()
    if (
        path.suffix in (".yaml", ".yml")
        or (path / "recipe.yaml").is_file()
        or (text in shipped_recipes() and text != "stdlib")
    ):
        return Recipe.load(find_recipe(text), overrides(None, assignments)), True
    recipe = parse_yaml("{model: {width: 1, blocks: 1, block: [mlp]}}", "--set")  # only its data is used
    return Recipe.from_source(recipe, overrides([text], assignments)), False


def _render(events: Iterable[Event], as_json: bool, path: bool) -> None:
    """Shows the events and prints the counts as a table; with `path`, the path of the tokens too."""
    with choose_renderer(as_json) as shown:
        for result in results(events, shown.show):
            if not as_json:
                shown.close()
                print(_table(result.values))
                result = Result(path=result.path if path else None)
            shown.result(result)


def _table(values: dict[str, Any]) -> str:
    """The counts of each source and split as a table, and the totals below it."""
    rows = [
        [
            str(row["source"]),
            str(row["split"]),
            f"{row['documents']:,}",
            f"{row['bytes']:,}",
            f"{row['tokens']:,}",
            f"{row['bytes_per_token']:.3f}",
        ]
        for row in values["sources"]
    ]
    heads = ["source", "split", "documents", "bytes", "tokens", "bytes/token"]
    totals = {key: value for key, value in values.items() if key != "sources"}
    width = max(map(len, totals))
    lines = [
        f"{key.replace('_', ' '):<{width}}  {f'{v:,}' if isinstance(v, int) else escaped(v)}"
        for key, v in totals.items()
    ]
    return figures.table(heads, rows, left=2) + "\n\n" + "\n".join(lines)
