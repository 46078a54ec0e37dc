"""How commands look in `--help`: plain text, quick to make, with examples, and headings in bold on a terminal."""

from __future__ import annotations

import os
import re
import sys
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from synthe_core.errors import unknown

SETTINGS: dict[str, Any] = {
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
"""What every `typer.Typer` of synthe is made with."""


def _painted(text: str) -> str:
    """Bold headings and examples where the output is a terminal that has not asked for plain text."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") in ("dumb", None):
        return text
    text = re.sub(r"^(Usage|Arguments|Options|Commands|Examples):", "\x1b[1m\\1:\x1b[0m", text, flags=re.MULTILINE)
    return re.sub(r"^(  )(synthe .*)$", "\\1\x1b[36m\\2\x1b[0m", text, flags=re.MULTILINE)


def _write_examples(formatter: Any, epilog: str | None) -> None:
    if epilog:
        formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in epilog.splitlines()))


class Command(TyperCommand):
    """A command whose epilog is its examples, shown as they are written."""

    def get_help(self, ctx: Any) -> str:
        return _painted(super().get_help(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.epilog)


class Group(TyperGroup):
    """A group of commands: by itself it shows its help, and it answers an unknown name with the nearest one."""

    def get_help(self, ctx: Any) -> str:
        return _painted(super().get_help(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.epilog)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if not args and not ctx.resilient_parsing:
            print(ctx.get_help())
            raise typer.Exit()
        return super().parse_args(ctx, args)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise unknown("command", args[0], names)
        return super().resolve_command(ctx, args)
