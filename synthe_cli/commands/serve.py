"""`synthe serve`: models behind an OpenAI-compatible server."""

from __future__ import annotations

import signal

import typer

from synthe_cli.commands import serve_options as options
from synthe_cli.commands.serve_run import Asked, run
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import DeviceOption, JsonOption

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe serve runs/60m                                              at http://127.0.0.1:6900, for this machine alone
synthe serve small=runs/tiny large=model.synapse --port 8000       two models, by the names that requests ask for
synthe serve runs/60m --sessions chats --cache 2GiB                conversations that outlast the server
synthe serve 60m=runs/60m --adapter 60m:yaml=runs/yaml             ask for the model 60m:yaml
synthe serve runs/60m --adapters loras                             adapters are loaded and unloaded through the API
synthe serve runs/60m --host 0.0.0.0 --api-key-file keys.txt       for other machines, with keys
synthe serve runs/60m --port 0 --json                              a free port, told in JSON when it is ready""",
)
def serve(
    models: options.Models = None,
    host: options.Host = Asked.host,
    port: options.Port = Asked.port,
    api_key_file: options.KeyFile = None,
    insecure: options.Insecure = False,
    allow_host: options.AllowHost = None,
    cors_origin: options.Origin = None,
    max_batch: options.MaxBatch = Asked.max_batch,
    max_waiting: options.MaxWaiting = Asked.max_waiting,
    cache: options.CacheSize = Asked.cache,
    cache_dir: options.CacheDir = None,
    sessions: options.Sessions = None,
    adapter: options.AdapterOption = None,
    adapters: options.Adapters = None,
    max_prompt: options.MaxPrompt = Asked.max_prompt,
    max_tokens: options.MaxTokens = Asked.max_tokens,
    max_n: options.MaxN = Asked.max_n,
    max_body: options.MaxBody = Asked.max_body,
    grace: options.Grace = Asked.grace,
    log_prompts: options.LogPrompts = False,
    quiet: options.Quiet = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve models over HTTP in the terms of OpenAI's API, with a dashboard at /.

    Clients of OpenAI take http://127.0.0.1:6900/v1 as their base URL: chats, completions, embeddings. /openapi.json
    describes every path; /metrics is for Prometheus. A model without a chat template is asked in lines of
    `User: ...` and `Assistant: ...`. A text's state has one size however long it gets, so what fits is known
    beforehand; who comes when all is taken is told when to come again (429). Ctrl-C lets texts end for --grace
    seconds and keeps conversations.
    """
    asked = Asked(
        tuple(models or ()),
        host=host,
        port=port,
        api_key_file=api_key_file,
        insecure=insecure,
        allow_host=tuple(allow_host or ()),
        cors_origin=tuple(cors_origin or ()),
        max_batch=max_batch,
        max_waiting=max_waiting,
        cache=cache,
        cache_dir=cache_dir,
        sessions=sessions,
        adapter=tuple(adapter or ()),
        adapters=tuple(adapters or ()),
        max_prompt=max_prompt,
        max_tokens=max_tokens,
        max_n=max_n,
        max_body=max_body,
        grace=grace,
        log_prompts=log_prompts,
        quiet=quiet,
        device=device,
        as_json=as_json,
    )
    if run(asked) == signal.SIGINT:
        raise typer.Exit(130)
