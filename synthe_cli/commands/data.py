"""`synthe data`: prepares and counts training text."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.escape import escaped
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import JsonOption, SetOption, find_recipe, overrides, shipped_recipes
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Event, Result, results

if TYPE_CHECKING:
    from synthe_core.data.spec import DataSpec

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
    short_help="Count documents, bytes and tokens.",
    epilog="""\
synthe data stats stdlib
synthe data stats my.txt --set data.tokenizer=bpe        with a trained tokenizer
synthe data stats recipes/tiny.yaml --json""",
)
def stats(source: SourceArgument, assign: SetOption = None, as_json: JsonOption = False) -> None:
    """Count documents, bytes, tokens and bytes per token of each source and split. Prepares the data if needed."""
    from synthe_core.data.prepare import stats as verb

    _render(verb(_data_of(source, assign)), as_json, path=False)


def _data_of(text: str, assignments: list[str] | None) -> DataSpec:
    """The `data` section of a recipe; or the default one with `text` as its source. --set is applied."""
    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage.yaml_reader import parse_yaml

    path = Path(text).expanduser()
    if (
        path.suffix in (".yaml", ".yml")
        or (path / "recipe.yaml").is_file()
        or (text in shipped_recipes() and text != "stdlib")
    ):
        return Recipe.load(find_recipe(text), overrides(None, assignments)).data
    recipe = parse_yaml("{model: {width: 1, blocks: 1, block: [mlp]}}", "--set")  # only its data is used
    return Recipe.from_source(recipe, overrides([text], assignments)).data


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
