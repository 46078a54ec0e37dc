"""`synthe models`: the downloaded models, and their removal."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from synthe_cli import figures
from synthe_cli.escape import escaped
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.hub_models import complete_hub
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results
from synthe_core.units import format_size

EXAMPLES = """\
synthe models                       name, kind, size, commit and last use
synthe models --json | jq -r .values.models[].name
synthe models rm Qwen/Qwen3-0.6B    remove one"""


class ModelsGroup(Group):
    """Lists the models where no command is given."""

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        return TyperGroup.parse_args(self, ctx, args)


app = typer.Typer(cls=ModelsGroup, invoke_without_command=True, epilog=EXAMPLES, **SETTINGS)


@app.callback()
def models(context: typer.Context, as_json: JsonOption = False) -> None:
    """List the models in the cache of the Hugging Face hub, whichever tool downloaded them.

    A name is what other commands take as a checkpoint. Models in folders of your own are not listed.
    """
    if context.invoked_subcommand is not None:
        return

    from synthe_core.storage.hub.cache import list_models

    with choose_renderer(as_json) as shown:
        for result in results(list_models(), shown.show):
            if as_json:
                shown.result(result)
            else:
                shown.close()
                print(_table(result.values))


@app.command(
    cls=Command,
    short_help="Remove models from the cache.",
    epilog="""\
synthe models rm Qwen/Qwen3-0.6B                everything of the repository
synthe models rm Qwen/Qwen3-0.6B@v1.0           one revision
synthe models rm ORG/NAME-GGUF:Q8_0             one file""",
)
def rm(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names as listed.", autocompletion=complete_hub)],
    as_json: JsonOption = False,
) -> None:
    """Remove models from the cache. A model that another process of synthe uses stays."""
    from synthe_core.storage.hub.cache import remove_model

    with choose_renderer(as_json) as shown:
        for name in names:
            for result in results(remove_model(name), shown.show):
                if as_json:
                    shown.result(result)
                else:
                    shown.close()
                    removed: Any = result.values
                    print(f"removed {escaped(', '.join(removed['removed']))}: {format_size(removed['bytes'])} are free")


def _table(values: dict[str, Any]) -> str:
    rows = [
        [
            escaped(each["name"]),
            each["kind"],
            each["source"].partition("@")[2][:12] or "-",
            _ago(each["used"]),
            format_size(each["bytes"]),
        ]
        for each in values["models"]
    ]
    folder = escaped(values["folder"])
    if not rows:
        return f"no models in {folder}"
    return figures.table(["name", "kind", "commit", "used", "size"], rows, left=4) + f"\n\n{folder}"


def _ago(used: str) -> str:
    """The day of the last use."""
    return datetime.fromisoformat(used).replace(tzinfo=UTC).astimezone().strftime("%Y-%m-%d")
