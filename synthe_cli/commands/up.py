"""`synthe up`: a server for this machine, and its dashboard in the browser."""

from __future__ import annotations

import signal
from dataclasses import replace

import typer

from synthe_cli.commands.serve_options import ServeOptions
from synthe_cli.commands.serve_run import run
from synthe_cli.dataclass_command import takes
from synthe_cli.help import SETTINGS, Command

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe up                              the newest run in runs/
synthe up runs/60m --port 0            this run, at a free port
synthe up --swarm team                 a swarm
synthe up runs/60m --sessions chats    conversations survive a restart""",
)
@takes(ServeOptions, "models", "swarm", "port", "sessions", "adapters", "device", "weights", "memory", "speculate")
def up(options: ServeOptions) -> None:
    """Serve models to this machine and open the dashboard in the browser.

    This is `synthe serve` with the options that you need most.
    """
    if run(replace(options, quiet=True, browser=True)) == signal.SIGINT:
        raise typer.Exit(130)
