"""What `synthe serve` does: checks what was asked, loads models, answers until it is told to end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
import time
import webbrowser
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthe_cli.api_key import keys_in
from synthe_cli.console import printable
from synthe_cli.options import size_option
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError, WorkError
from synthe_core.units import format_count, format_size

if TYPE_CHECKING:
    from synthe_core.inference.engine import Engine
    from synthe_core.inference.served import Served
    from synthe_core.serving.api.server import Server
    from synthe_core.serving.api.settings import Settings

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SHORTEST_KEY = 16
SHORT = 1024  # tokens


@dataclass(frozen=True)
class Asked:
    """The options, see `serve_options`."""

    models: tuple[str, ...] = ()
    host: str = "127.0.0.1"
    port: int = 6900
    api_key_file: Path | None = None
    insecure: bool = False
    allow_host: tuple[str, ...] = ()
    cors_origin: tuple[str, ...] = ()
    max_batch: int = 64
    max_waiting: int = 256
    cache: str = "512MiB"
    cache_dir: Path | None = None
    sessions: Path | None = None
    adapter: tuple[str, ...] = ()
    adapters: tuple[Path, ...] = ()
    max_prompt: int = 131_072
    max_tokens: int = 4096
    max_n: int = 16
    max_body: str = "16MiB"
    grace: float = 10.0
    log_prompts: bool = False
    quiet: bool = False
    device: str | None = None
    as_json: bool = False
    browser: bool = False


def run(asked: Asked) -> int | None:
    """Serves until a signal comes, and gives its number. What can be wrong is found before anything is loaded."""
    named = names(asked.models)
    from synthe_core.inference import steady

    steady.ask()  # before anything is computed
    settings = settings_of(asked)
    adapters = [adapter_of(text, named) for text in asked.adapter]
    cache = size_option(asked.cache, "--cache")

    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.inference.engine import Engine
    from synthe_core.serving.api.server import Server, allow_connections

    where = choose_device(asked.device or "auto", probe()).value
    allow_connections()
    served = [opened(path, name, where) for name, path in named.items()]
    with (
        Engine(
            served,
            max_batch=asked.max_batch,
            max_waiting=asked.max_waiting,
            cache_bytes=cache,
            cache_dir=asked.cache_dir,
            sessions=asked.sessions,
        ) as engine,
        Server(engine, settings, asked.host, asked.port) as server,
        stop_on_signal(f"texts may end for {asked.grace:g} s") as stop,
    ):
        for model, name, path in adapters:
            engine.load_adapter(model, name, path)
        tell(asked, server, engine)
        while not stop.wait(0.5):
            if not server.alive:
                raise WorkError("the server has ended by itself")
        server.stop(asked.grace)
        return stop.number


def names(models: tuple[str, ...]) -> dict[str, Path]:
    """What is to be served, by name; InputError for a name twice, or none that a request could ask for."""
    found: dict[str, Path] = {}
    for text in models or (str(newest()),):
        name, equals, rest = text.partition("=")
        path = Path(rest if equals else text).expanduser()
        if not equals:
            name = re.sub(r"[^A-Za-z0-9_.-]", "-", path.resolve().name.removesuffix(".synapse"))
        if not NAME.fullmatch(name):
            raise InputError(
                f"'{name}' is no name for a model", "letters, digits, dots, dashes and underscores: NAME=PATH"
            )
        if name in found:
            raise InputError(f"two models are called '{name}'", f"say NAME=PATH for one of them, as {name}-2={path}")
        if not path.exists():
            raise InputError(f"no such model: {path}", "a run, a checkpoint, a .synapse file or a Hugging Face folder")
        found[name] = path
    return found


def newest() -> Path:
    """The run here that was written to last."""
    runs = [
        path for path in Path("runs").glob("*") if (path / "checkpoints").is_dir() or (path / "manifest.json").is_file()
    ]
    if not runs:
        raise InputError("which model? there are no runs here", "name one: synthe serve runs/60m, or a .synapse file")
    return max(runs, key=lambda path: path.stat().st_mtime)


def adapter_of(text: str, named: dict[str, Path]) -> tuple[str, str, Path]:
    """`[MODEL:]NAME=DIR` as model, name and path; the only model there is need not be named."""
    left, equals, path = text.partition("=")
    model, colon, name = left.rpartition(":")
    if not colon and len(named) == 1:
        model = next(iter(named))
    if not equals or model not in named or not NAME.fullmatch(name):
        raise InputError(f"--adapter {text}: expected MODEL:NAME=DIR", f"the models are {', '.join(named)}")
    if not Path(path).expanduser().exists():
        raise InputError(f"--adapter {text}: there is no {path}")
    return model, name, Path(path).expanduser()


def settings_of(asked: Asked) -> Settings:
    """Who may ask and how much; InputError for a server that strangers could use."""
    from synthe_core.serving.api.guard import LOOPBACK
    from synthe_core.serving.api.server import is_loopback
    from synthe_core.serving.api.settings import Settings, silent

    keys = read_keys(asked.api_key_file) if asked.api_key_file else ()
    at_home = is_loopback(asked.host)
    if not at_home and not keys and not asked.insecure:
        raise InputError(
            f"--host {asked.host} lets other machines in, and no key is asked for",
            "--api-key-file FILE asks for one; --insecure lets everybody in",
        )
    for origin in asked.cors_origin:
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise InputError(f"--cors-origin {origin}: no origin", "scheme and host, as https://example.org")
    for folder in asked.adapters:
        if not folder.is_dir():
            raise InputError(f"--adapters {folder}: no such folder")
    return Settings(
        keys=keys,
        hosts=LOOPBACK | {asked.host.lower(), *(name.lower() for name in asked.allow_host)} if at_home else None,
        origins=asked.cors_origin,
        adapters=asked.adapters,
        max_body=size_option(asked.max_body, "--max-body"),
        max_prompt=asked.max_prompt,
        max_tokens=asked.max_tokens,
        max_n=asked.max_n,
        log_prompts=asked.log_prompts,
        log=silent if asked.quiet else log,
    )


def read_keys(path: Path) -> tuple[str, ...]:
    """The keys to be asked for, none of which can be guessed."""
    keys = keys_in(path)
    if short := [key for key in keys if len(key) < SHORTEST_KEY]:
        raise InputError(
            f"--api-key-file {path}: a key has {len(short[0])} characters, which can be guessed",
            f"{SHORTEST_KEY} at least: openssl rand -hex 32",
        )
    if path.expanduser().stat().st_mode & 0o044:
        say(f"warning: {path} can be read by others: chmod 600 {path}")
    return keys


def opened(path: Path, name: str, device: str) -> Served:
    """A model of ours, or of Hugging Face's transformers."""
    from synthe_core.inference.served import Served

    if (path / "config.json").is_file() and not (path / "manifest.json").is_file():
        from synthe_core.interop.huggingface import transformers_model

        return transformers_model.load(path, name, device)
    return Served.load(path, name, device)


def tell(asked: Asked, server: Server, engine: Engine) -> None:
    """Where it answers, with what, and how much there is room for."""
    status = engine.status()
    entries = [
        {
            "name": name,
            "path": str(served.path),
            "parameters": served.model.parameter_count(),
            "state_bytes_per_sequence": served.bytes_at(asked.max_prompt + asked.max_tokens),
            "adapters": sorted(served.adapters),
        }
        for name, served in engine.models.items()
    ]
    if asked.as_json:
        print(
            json.dumps({"event": "ready", "url": server.url, "models": entries, "max_batch": asked.max_batch}),
            flush=True,
        )
    for line in described(asked, engine, status):
        say(line)
    say(f"ready at {server.url}  (Ctrl-C ends it)")
    if asked.browser and not (has_screen() and webbrowser.open(server.url)):
        say("there is no browser here: open that address yourself")


def state_of(served: Served, longest: int) -> str:
    """What one text takes, beside the weights."""
    longest = min(longest, served.limit or longest)
    short, most = served.bytes_at(SHORT), served.bytes_at(longest)
    if short == most:
        return f"{format_size(most)} of state a text"
    return f"{format_size(short)} of state a text at {SHORT:,} tokens, {format_size(most)} at {longest:,}"


def has_screen() -> bool:
    """Whether a browser would have a window, rather than this terminal."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def described(asked: Asked, engine: Engine, status: dict[str, Any]) -> list[str]:
    lines = []
    for name, served in engine.models.items():
        facts = [f"{format_count(served.model.parameter_count())} parameters"]
        facts.append(state_of(served, asked.max_prompt + asked.max_tokens))
        if served.tokenizer.chat_template is None:
            facts.append("no chat template: asked in lines of `User:`, `Assistant:`")
        lines.append(f"{name}  {'  '.join(facts)}")
        lines += [f"{name}:{adapter}  an adapter" for adapter in sorted(served.adapters)]
    lines.append(
        f"{status['max_batch']} texts at a time, in {format_size(status['state_bytes_limit'])} of state at most; "
        f"{status['max_waiting']} more may wait; {format_size(status['cache']['limit'])} for earlier prompts"
    )
    if not asked.api_key_file and asked.insecure:
        lines.append("warning: everybody who reaches this address may ask")
    return lines


def log(line: str) -> None:
    say(f"{time.strftime('%H:%M:%S')}  {line}")


def say(line: str) -> None:
    """A line of progress; whoever started the server may have stopped to read it."""
    with contextlib.suppress(OSError):
        print(printable(line), file=sys.stderr, flush=True)
