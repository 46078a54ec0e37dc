"""`synthe up`: a server for this machine, and its dashboard in the browser."""

from __future__ import annotations

import signal

import typer

from synthe_cli.commands import serve_options as options
from synthe_cli.commands.serve_run import Asked, run
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import DeviceOption

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe up                              the newest run here
synthe up runs/60m --port 0            this one, at a free port
synthe up runs/60m --sessions chats    with conversations that are there again tomorrow""",
)
def up(
    models: options.Models = None,
    port: options.Port = Asked.port,
    sessions: options.Sessions = None,
    adapters: options.Adapters = None,
    device: DeviceOption = None,
) -> None:
    """Serve models to this machine and open the dashboard in the browser.

    It is `synthe serve`, which has more options.
    """
    asked = Asked(
        tuple(models or ()),
        port=port,
        sessions=sessions,
        adapters=tuple(adapters or ()),
        device=device,
        quiet=True,
        browser=True,
    )
    if run(asked) == signal.SIGINT:
        raise typer.Exit(130)
