"""`synthe serve`: models behind an OpenAI-compatible server."""

from __future__ import annotations

import signal

import typer

from synthe_cli.commands.serve_options import ServeOptions
from synthe_cli.commands.serve_run import run
from synthe_cli.dataclass_command import takes
from synthe_cli.help import SETTINGS, Command

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe serve runs/60m                                              at http://127.0.0.1:6900, for this machine only
synthe serve small=runs/tiny large=model.synapse --port 8000       two models; requests name one of them
synthe serve runs/60m --sessions chats --cache 2GiB                conversations survive a restart
synthe serve 60m=runs/60m --adapter 60m:yaml=runs/yaml             requests name the adapter as 60m:yaml
synthe serve runs/60m --speculate ngram                            answers that repeat their prompt come sooner
synthe serve runs/60m --adapters loras                             the API loads and unloads adapters
synthe serve runs/60m --tools python                               the server runs programs that the model writes
synthe serve --swarm team                                          a swarm: requests name swarm or a specialist
synthe serve runs/60m --host 0.0.0.0 --api-key-file keys.txt       for other machines, with API keys
synthe serve runs/60m --port 0 --json                              a free port; prints one JSON line when ready""",
)
@takes(ServeOptions)
def serve(options: ServeOptions) -> None:
    """Serve models over an OpenAI-compatible HTTP API, with a dashboard at /.

    Use http://127.0.0.1:6900/v1 as the base URL of an OpenAI client. The API has chat completions, completions and
    embeddings; /openapi.json describes every path, and /metrics is for Prometheus. If a model has no chat template, its
    chat prompt is lines of `User: ...` and `Assistant: ...`. The server knows the state size of a sequence and admits
    only what fits in memory; further requests are queued, and when the queue is full they get 429. On Ctrl-C, running
    requests get --grace seconds to finish, and conversations are saved.
    """
    if run(options) == signal.SIGINT:
        raise typer.Exit(130)
