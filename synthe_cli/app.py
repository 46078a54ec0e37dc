"""The entry point: a table of commands, each imported when it is called, and one place where failures end."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import synthe_core
from synthe_cli.failures import report
from synthe_cli.help import SETTINGS, Group
from synthe_core.registry import Table

COMMANDS = {
    "train": ("synthe_cli.commands.train:app", "Train a model from a recipe, or go on with a run."),
    "generate": ("synthe_cli.commands.generate:app", "Write text with a trained model."),
    "serve": ("synthe_cli.commands.serve:app", "Serve models over HTTP, as OpenAI's API does."),
    "up": ("synthe_cli.commands.up:app", "Serve a model to this machine, and open the dashboard."),
    "eval": ("synthe_cli.commands.eval:app", "Evaluate trained models on tasks and on new text."),
    "introspect": ("synthe_cli.commands.introspect:app", "See what a model does with a text, layer by layer."),
    "profile-vram": ("synthe_cli.commands.profile_vram:app", "How much memory a recipe takes, and where it fits."),
    "recipe": ("synthe_cli.commands.recipe:app", "Show, check or describe recipes."),
    "data": ("synthe_cli.commands.data:app", "Prepare text for training, and count it."),
    "import": ("synthe_cli.commands.import_:app", "Make a checkpoint of a model that another program has written."),
    "export": ("synthe_cli.commands.export:app", "Write a checkpoint for another program."),
    "merge": ("synthe_cli.commands.merge:app", "Make one model of several, by TIES and its family; adapters too."),
    "pack": ("synthe_cli.commands.pack:app", "Put a model and what belongs to it into one file."),
    "unpack": ("synthe_cli.commands.unpack:app", "Take a .synapse file apart into a folder."),
    "hub": ("synthe_cli.commands.hub:app", "Share .synapse files on the Hugging Face hub, and fetch them."),
    "bench": ("synthe_cli.commands.bench:app", "Measure what learners can do, and how fast they are."),
    "hardware": ("synthe_cli.commands.hardware:app", "What this machine is, what is used of it, and why."),
}
"""name: (where the command's `typer.Typer` is, its line in `synthe --help`). A new command is a new line here."""

TABLE = Table("command", "synthe.commands", {name: target for name, (target, _) in COMMANDS.items()})


class Carried(Exception):
    """Takes a failure past the parser's own handlers."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


@contextmanager
def carried() -> Iterator[None]:
    """Failures that the parser would report in its own way become `Carried` within the block."""
    try:
        yield
    except (KeyboardInterrupt, EOFError, OSError) as error:
        raise Carried(error) from error


class Root(Group):
    """`synthe`: lists its commands without importing them, and turns whatever fails into one line."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [*COMMANDS, *(name for name in TABLE if name not in COMMANDS)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in TABLE:
            return None
        if cmd_name not in self.commands:
            self.commands[cmd_name] = typer.main.get_command(TABLE[cmd_name])
            self.commands[cmd_name].name = cmd_name
        return self.commands[cmd_name]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS.get(name, ("", "A plugin."))[1]) for name in self.list_commands(ctx)])

    def invoke(self, ctx: Any) -> Any:
        with carried():
            return super().invoke(ctx)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with carried():
            return super().make_context(*args, **extra)

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs the command line and exits with its code: 0, 1 failed at work, 2 bad input, 130 interrupted."""
        try:
            code = super().main(*args, **{**options, "prog_name": "synthe", "standalone_mode": False})
            sys.stdout.flush()
        except SystemExit:
            raise
        except BaseException as error:
            code = report(error.error if isinstance(error, Carried) else error)
        sys.exit(code or 0)


app = typer.Typer(
    cls=Root,
    epilog="""\
synthe train recipes/tiny.yaml                       train a small model on this machine, now
synthe generate runs/tiny --prompt "def "            write with it
synthe recipe show recipes/60m.yaml                  what a recipe means: sizes, memory, cost
synthe train tiny | synthe generate - -p "import "   one after the other
synthe COMMAND --help                                every command explains itself""",
    **{**SETTINGS, "add_completion": True},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"synthe {synthe_core.__version__}")
        raise typer.Exit()


@app.callback()
def synthe(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, measure and ship sequence models whose layers learn while they run.

    Results go to stdout and progress to stderr, so that commands chain; --json makes stdout JSON lines.
    """


def main() -> None:
    """What the `synthe` script calls."""
    # Threads that spin while they wait take the cores from whatever else runs here, and training beside other busy
    # processes slows down, at worst tenfold; RESULTS.md has the figures, and the cost alone. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever called
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open for as long as the process)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C; long verbs save first, see signals.py
    app()


if __name__ == "__main__":
    main()
