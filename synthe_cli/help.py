"""The format of `--help`: plain text with examples, and bold headings on a terminal."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
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
"""Arguments of every `typer.Typer` of synthe."""


def _colored(text: str) -> str:
    """Bold headings and coloured examples on a terminal, unless NO_COLOR is set."""
    if not sys.stdout.isatty() or "NO_COLOR" in os.environ or os.environ.get("TERM") in ("dumb", None):
        return text
    text = re.sub(r"^(Usage|Arguments|Options|Commands|Examples):", "\x1b[1m\\1:\x1b[0m", text, flags=re.MULTILINE)
    return re.sub(r"^(  )(synthe .*)$", "\\1\x1b[36m\\2\x1b[0m", text, flags=re.MULTILINE)


def _write_examples(formatter: Any, epilog: str | None) -> None:
    if epilog:
        formatter.write("\nExamples:\n" + "".join(f"  {line}\n" for line in epilog.splitlines()))


def _aligned(examples: Iterable[str]) -> str:
    """The examples with their comments, which follow several spaces, in one column."""
    rows = [re.split(r" {2,}", each, maxsplit=1) for each in examples]
    width = max((len(row[0]) for row in rows), default=0)
    return "\n".join("  ".join([row[0].ljust(width), *row[1:]]).rstrip() for row in rows)


class Command(TyperCommand):
    """A command whose epilog has its examples, which are printed verbatim."""

    def get_help(self, ctx: Any) -> str:
        return _colored(super().get_help(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        _write_examples(formatter, self.epilog)


class Group(TyperGroup):
    """A group of commands. Without arguments it prints its help; for an unknown name it suggests the nearest one."""

    def get_help(self, ctx: Any) -> str:
        return _colored(super().get_help(ctx))

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Its own examples; without any, the first example of each of its commands."""
        _write_examples(formatter, self.epilog or _aligned(self._first_examples(ctx)))

    def _first_examples(self, ctx: Any) -> Iterator[str]:
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden and command.epilog:
                yield command.epilog.splitlines()[0]

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
