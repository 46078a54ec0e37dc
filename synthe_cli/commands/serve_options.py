"""The options of `synthe serve` and `synthe up`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.options import complete_run

Models = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=]MODEL...",
        help="Runs, checkpoints, .synapse files or Hugging Face folders; the newest of runs/ by default.",
        autocompletion=complete_run,
    ),
]
Host = Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 127.0.0.1: this machine alone.")]
Port = Annotated[int, typer.Option("--port", min=0, max=65535, metavar="N", help="0 takes a free one.")]
KeyFile = Annotated[
    Path | None,
    typer.Option("--api-key-file", metavar="FILE", help="A key a line; every request must bring one of them."),
]
Insecure = Annotated[bool, typer.Option("--insecure", help="Serve other machines without keys all the same.")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option("--allow-host", metavar="NAME", help="Another name this server goes by, behind a proxy. Repeatable."),
]
Origin = Annotated[
    list[str] | None,
    typer.Option("--cors-origin", metavar="ORIGIN", help="Web pages from there may ask, as https://a.b. Repeatable."),
]
MaxBatch = Annotated[int, typer.Option("--max-batch", min=1, metavar="N", help="Texts that are written at a time.")]
MaxWaiting = Annotated[
    int, typer.Option("--max-waiting", min=0, metavar="N", help="Texts that may wait; more are told to come again.")
]
Sessions = Annotated[
    Path | None, typer.Option("--sessions", metavar="DIR", help="Keep conversations there, over restarts too.")
]
CacheSize = Annotated[
    str, typer.Option("--cache", metavar="SIZE", help="Memory for the states of earlier prompts; 0 keeps none.")
]
CacheDir = Annotated[
    Path | None, typer.Option("--cache-dir", metavar="DIR", help="Where states go that memory has no room for.")
]
Adapters = Annotated[
    list[Path] | None,
    typer.Option("--adapters", metavar="DIR", help="Requests may load adapters from this folder. Repeatable."),
]
AdapterOption = Annotated[
    list[str] | None,
    typer.Option("--adapter", metavar="[MODEL:]NAME=DIR", help="Load this adapter at the start. Repeatable."),
]
MaxPrompt = Annotated[int, typer.Option("--max-prompt", min=1, metavar="N", help="The most tokens of a prompt.")]
MaxTokens = Annotated[int, typer.Option("--max-tokens", min=1, metavar="N", help="The most tokens of an answer.")]
MaxN = Annotated[int, typer.Option("--max-n", min=1, max=128, metavar="N", help="The most answers to one prompt.")]
MaxBody = Annotated[str, typer.Option("--max-body", metavar="SIZE", help="The most bytes of a request.")]
Grace = Annotated[
    float, typer.Option("--grace", min=0, metavar="SECONDS", help="How long texts may go on when the server ends.")
]
LogPrompts = Annotated[bool, typer.Option("--log-prompts", help="Write what is asked into the log.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No line for every request.")]
