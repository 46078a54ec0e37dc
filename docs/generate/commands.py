"""One page a command, from its `--help` and that of its own commands."""

from __future__ import annotations

from typing import Any

import typer

from docs.generate.markdown import block, cell, table
from synthe_cli.app import COMMANDS, app

WIDTH = 100


def root() -> Any:
    """The command `synthe` as the parser knows it."""
    return typer.main.get_command(app)


def help_text(command: Any, context: Any) -> str:
    """What `--help` prints, `WIDTH` columns wide."""
    return str(command.get_help(context)).replace("\b\n", "")


def context_of(command: Any, name: str, parent: Any = None) -> Any:
    """A context that formats help like the terminal does, at a width that is always the same."""
    return command.context_class(
        command, info_name=name, parent=parent, terminal_width=WIDTH, max_content_width=WIDTH, **_help_names(command)
    )


def _help_names(command: Any) -> dict[str, Any]:
    names = command.context_settings.get("help_option_names")
    return {"help_option_names": names} if names else {}


def pages() -> dict[str, str]:
    """commands/index.md, and commands/NAME.md for every command of the table."""
    synthe = root()
    context = context_of(synthe, "synthe")
    texts = {f"commands/{name}.md": _page(synthe.get_command(context, name), name, context) for name in COMMANDS}
    rows = [[f"[`synthe {name}`]({name}.md)", cell(line)] for name, (_, line) in COMMANDS.items()]
    index = "# Commands\n\n" + table(["command", "what it does"], rows) + "\n" + block(help_text(synthe, context))
    return {"commands/index.md": index, **texts}


def _page(command: Any, name: str, parent: Any) -> str:
    context = context_of(command, name, parent)
    parts = [f"# synthe {name}\n", block(help_text(command, context))]
    if hasattr(command, "list_commands"):
        for each in command.list_commands(context):
            child = command.get_command(context, each)
            parts += [f"## synthe {name} {each}\n", block(help_text(child, context_of(child, each, context)))]
    return "\n".join(parts)
