"""The options of `synthe serve`, some of which `synthe up` has too: each is declared here, once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.options import (
    DeviceOption,
    GenerationConfigOption,
    JsonOption,
    MemoryOption,
    SpeculateOption,
    WeightsOption,
    complete_run,
)
from synthe_cli.pathways_option import PathwaysOption
from synthe_cli.tool_options import ToolsOption, UnsafeToolsOption


@dataclass(frozen=True)
class ServeOptions:
    """Every field but the last is an option."""

    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME=]MODEL...",
            help="Runs, checkpoints, model files or folders, or ORG/NAME of the hub. Default: the newest run in runs/.",
            autocompletion=complete_run,
        ),
    ] = None
    swarm: Annotated[
        Path | None,
        typer.Option(
            "--swarm", metavar="TEAM", help="Serve this swarm: as the model `swarm`, and each specialist by its name."
        ),
    ] = None
    host: Annotated[
        str,
        typer.Option("--host", metavar="ADDRESS", help="Address to listen on. 127.0.0.1 accepts only this machine."),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on. 0 takes a free one.")
    ] = 6900
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            help="API keys, one a line: KEY [user|reviewer|admin]. Every request must send one.",
        ),
    ] = None
    admin_key_file: Annotated[
        Path | None,
        typer.Option(
            "--admin-key-file",
            metavar="FILE",
            help="API keys, one a line, that also see the figures of all keys in /metrics and /api/status.",
        ),
    ] = None
    shared: Annotated[
        bool,
        typer.Option(
            "--shared",
            help="API keys share conversations, cached states, adapters and figures. Otherwise each has its own.",
        ),
    ] = False
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without an API key.")] = False
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="Another host name of this server. Repeatable."),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            "--cors-origin", metavar="ORIGIN", help="Allow cross-origin requests from https://a.b. Repeatable."
        ),
    ] = None
    max_batch: Annotated[
        int, typer.Option("--max-batch", min=1, metavar="N", help="Maximum number of concurrent requests.")
    ] = 64
    max_waiting: Annotated[
        int,
        typer.Option("--max-waiting", min=0, metavar="N", help="Maximum queue length. Further requests get 429."),
    ] = 256
    max_key_requests: Annotated[
        int | None,
        typer.Option(
            "--max-key-requests",
            min=1,
            metavar="N",
            help="Maximum number of requests of one API key, running and queued. Default: --max-batch and half of "
            "--max-waiting.",
        ),
    ] = None
    cache: Annotated[
        str, typer.Option("--cache", metavar="SIZE", help="Memory for cached prompt states. 0 turns the cache off.")
    ] = "512MiB"
    cache_dir: Annotated[
        Path | None,
        typer.Option("--cache-dir", metavar="DIR", help="Move cached states that exceed --cache to this folder."),
    ] = None
    cache_dir_size: Annotated[
        str | None,
        typer.Option("--cache-dir-size", metavar="SIZE", help="Limit of that folder. Default: eight times --cache."),
    ] = None
    sessions: Annotated[
        Path | None, typer.Option("--sessions", metavar="DIR", help="Save conversations in this folder.")
    ] = None
    max_sessions: Annotated[
        int, typer.Option("--max-sessions", min=1, metavar="N", help="Maximum number of conversations of one API key.")
    ] = 1000
    max_session_bytes: Annotated[
        str,
        typer.Option("--max-session-bytes", metavar="SIZE", help="Maximum size of the conversations of one API key."),
    ] = "16GiB"
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="[MODEL:]NAME=DIR", help="Load this adapter at startup. Repeatable."),
    ] = None
    adapters: Annotated[
        list[Path] | None,
        typer.Option("--adapters", metavar="DIR", help="Requests may load adapters from this folder. Repeatable."),
    ] = None
    max_adapters: Annotated[
        int,
        typer.Option("--max-adapters", min=0, metavar="N", help="Maximum number of adapters that one API key loads."),
    ] = 16
    max_prompt: Annotated[
        int, typer.Option("--max-prompt", min=1, metavar="N", help="Maximum number of prompt tokens.")
    ] = 131_072
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", min=1, metavar="N", help="Maximum number of output tokens.")
    ] = 4096
    generation_config: GenerationConfigOption = "auto"
    max_n: Annotated[
        int, typer.Option("--max-n", min=1, max=128, metavar="N", help="Maximum number of choices per prompt.")
    ] = 16
    max_body: Annotated[str, typer.Option("--max-body", metavar="SIZE", help="Maximum size of a request.")] = "16MiB"
    grace: Annotated[
        float,
        typer.Option(
            "--grace", min=0, metavar="SECONDS", help="How long running requests may finish when the server stops."
        ),
    ] = 10.0
    tools: ToolsOption = None
    unsafe_tools: UnsafeToolsOption = False
    open_objects: Annotated[
        bool,
        typer.Option(
            "--open-objects",
            help="JSON objects may have more properties than their schema names. Default: only if it says so.",
        ),
    ] = False
    log_prompts: Annotated[bool, typer.Option("--log-prompts", help="Log the prompts.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Do not log requests.")] = False
    device: DeviceOption = None
    weights: WeightsOption = "auto"
    memory: MemoryOption = None
    pathways: PathwaysOption = None
    speculate: SpeculateOption = None
    as_json: JsonOption = False
    browser: bool = False
    """Whether the dashboard is opened in a browser."""
