"""The entry point: a table of commands, each imported when it is called, and one handler of failures."""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import synthe_core
from synthe_cli.escape import escaped
from synthe_cli.failures import report
from synthe_cli.help import SETTINGS, Group
from synthe_core.registry import Table

COMMANDS = {
    "train": ("synthe_cli.commands.train:app", "Train a model from a recipe, or resume a run."),
    "sweep": ("synthe_cli.commands.sweep:app", "Train a grid of recipes, several runs at a time."),
    "scale": ("synthe_cli.commands.scale:app", "Fit scaling laws, and plan a training run."),
    "generate": ("synthe_cli.commands.generate:app", "Generate text with a trained model."),
    "chat": ("synthe_cli.commands.chat:app", "Chat with a trained model in the terminal."),
    "serve": ("synthe_cli.commands.serve:app", "Serve models over an OpenAI-compatible HTTP API."),
    "up": ("synthe_cli.commands.up:app", "Serve a model to this machine, and open the dashboard."),
    "swarm": ("synthe_cli.commands.swarm:app", "Route requests to specialists on one model, and learn from use."),
    "documents": ("synthe_cli.commands.documents:app", "Index documents, and search them."),
    "eval": ("synthe_cli.commands.eval:app", "Evaluate trained models on tasks and on text."),
    "introspect": ("synthe_cli.commands.introspect:app", "Inspect what a model computes on a text."),
    "profile-vram": ("synthe_cli.commands.profile_vram:app", "Estimate the memory of a recipe and where it fits."),
    "recipe": ("synthe_cli.commands.recipe:app", "Show, validate or describe recipes."),
    "data": ("synthe_cli.commands.data:app", "Prepare and count training text."),
    "import": ("synthe_cli.commands.import_:app", "Import a model of another framework."),
    "export": ("synthe_cli.commands.export:app", "Export a checkpoint for another framework."),
    "merge": ("synthe_cli.commands.merge:app", "Merge models or adapters, with TIES and related methods."),
    "pack": ("synthe_cli.commands.pack:app", "Pack a model and its adapters into one file."),
    "unpack": ("synthe_cli.commands.unpack:app", "Unpack a .synapse file into a folder."),
    "hub": ("synthe_cli.commands.hub:app", "Upload and download .synapse files."),
    "pull": ("synthe_cli.commands.pull:app", "Download a model of the Hugging Face hub."),
    "models": ("synthe_cli.commands.models:app", "List or remove downloaded models."),
    "bench": ("synthe_cli.commands.bench:app", "Benchmark learners: quality, speed and serving."),
    "hardware": (
        "synthe_cli.commands.hardware:app",
        "Show the hardware and what is chosen for it.",
    ),
}
"""name: (where the command's `typer.Typer` is, its line in `synthe --help`). A new command is a new line here."""

TABLE = Table("command", "synthe.commands", {name: target for name, (target, _) in COMMANDS.items()})


class WrappedError(Exception):
    """Passes a failure through the parser's own handlers."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


@contextmanager
def wrap_errors() -> Iterator[None]:
    """Within the block, errors that the parser would report itself become `WrappedError`."""
    try:
        yield
    except (KeyboardInterrupt, EOFError, OSError) as error:
        raise WrappedError(error) from error


class Root(Group):
    """`synthe`: lists its commands without importing them, and reports every failure in one line."""

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
        with wrap_errors():
            return super().invoke(ctx)

    def make_context(self, *args: Any, **extra: Any) -> Any:
        with wrap_errors():
            return super().make_context(*args, **extra)

    def main(self, *args: Any, **options: Any) -> Any:
        """Runs the command line and exits with its code: 0, 1 failed at work, 2 bad input, 130 interrupted."""
        try:
            code = super().main(*args, **{**options, "prog_name": "synthe", "standalone_mode": False})
            sys.stdout.flush()
        except SystemExit:
            raise
        except BaseException as error:
            code = report(error.error if isinstance(error, WrappedError) else error)
        sys.exit(code or 0)


app = typer.Typer(
    cls=Root,
    epilog="""\
synthe train recipes/tiny.yaml                       train a small model on this machine
synthe generate runs/tiny --prompt "def "            generate text with it
synthe recipe show recipes/60m.yaml                  a recipe's sizes, memory and cost
synthe train tiny | synthe generate - -p "import "   commands chain
synthe COMMAND --help                                help for one command""",
    **{**SETTINGS, "add_completion": True},
)


def _version(requested: bool) -> None:
    if requested:
        print(f"synthe {synthe_core.__version__}")
        raise typer.Exit()


@app.callback()
def synthe(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Train, evaluate, serve and package sequence models whose layers learn while they run.

    Results go to stdout and progress to stderr, so commands chain. --json prints JSON lines.
    """


def _warn(message: Warning | str, category: type[Warning], *_: Any) -> None:
    if not issubclass(category, (DeprecationWarning, PendingDeprecationWarning)):
        print(escaped(f"warning: {' '.join(str(message).split())}"), file=sys.stderr)


def _set_wait_policy() -> None:
    """OpenMP threads that spin long while they wait slow everything down beside other busy processes, at worst tenfold,
    and those that sleep at once cost a third of decoding: docs/results/decoding.md. So they spin shortly. GNU's runtime
    does that for one thread that computes; beside a second one, as in a server, its threads sleep almost at once unless
    the policy is `active`, which for LLVM's alone would mean for ever. Read when torch is imported.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & os.environ.keys():
        os.environ.update(OMP_WAIT_POLICY="active", GOMP_SPINCOUNT="1000", KMP_BLOCKTIME="1")


def main() -> None:
    """The `synthe` script."""
    _set_wait_policy()
    if "WORLD_SIZE" in os.environ:  # torch's notes, of every process, on what parameters a batch has not used
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 (open for as long as the process)
    warnings.showwarning = _warn  # type: ignore[assignment]  # a library's warning is a line, as every notice is
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # like Ctrl-C; long commands save first, see signals.py
    app()


if __name__ == "__main__":
    main()
