"""What `synthe serve` does: checks its options, loads the models, and serves until a signal stops it."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import sys
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from synthe_cli.api_key import roles_in
from synthe_cli.commands.serve_options import ServeOptions
from synthe_cli.escape import escaped
from synthe_cli.hub_models import find_model
from synthe_cli.options import (
    device_option,
    memory_size,
    size_option,
    speculate_with,
    speculation,
    uses_generation_config,
)
from synthe_cli.pathways_option import begin_with_pathways
from synthe_cli.signals import stop_on_signal
from synthe_cli.startup import without_collection
from synthe_core.errors import InputError, WorkError
from synthe_core.storage.hub.snapshot import model_name
from synthe_core.storage.named_path import split_named
from synthe_core.units import format_count, format_size

if TYPE_CHECKING:
    from synthe_core.inference.async_engine import AsyncEngine
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.serving.api.server import Server
    from synthe_core.serving.api.settings import Settings
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.team import Swarm

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
SHORTEST_KEY = 16
SHORT_SEQUENCE = 1024  # tokens


def run(options: ServeOptions) -> int | None:
    """Serves until a signal stops it, and returns its number. Options are checked before a model is loaded."""
    paths = checked_paths(options)
    with without_collection():
        from synthe_core.hardware.mkl import request_strict_mode
        from synthe_core.hardware.placement import choose_device
        from synthe_core.hardware.probe import probe
        from synthe_core.inference.async_engine import AsyncEngine
        from synthe_core.inference.session_store import SessionLimits
        from synthe_core.interop.load import load_model
        from synthe_core.serving.api.server import Server, allow_connections

    request_strict_mode()  # before anything is computed
    settings = settings_of(options)
    recommended = uses_generation_config(options.generation_config)
    drafts, limit = speculation(options.speculate), memory_limit(options, paths)
    adapters = [parse_adapter(text, paths) for text in options.adapter or ()]
    cache = size_option(options.cache, "--cache")
    disk = None if options.cache_dir_size is None else size_option(options.cache_dir_size, "--cache-dir-size")
    if disk is not None and options.cache_dir is None:
        raise InputError("--cache-dir-size is of the folder --cache-dir, which is not given", "give it, too")
    session_bytes = size_option(options.max_session_bytes, "--max-session-bytes")

    device = choose_device(device_option(options.device, limit), probe()).value
    allow_connections()
    folder = None if options.swarm is None else swarm_folder(options.swarm)
    models = [load_model(path, name, device, weights=options.weights, memory=limit) for name, path in paths.items()]
    models += swarm_models(folder, device, options.weights)
    speculate_with(models, drafts, device)
    begin_with_pathways(models[0], options.pathways)
    for each in models:
        each.recommended = recommended
        _ = each.defaults  # an invalid file ends here
    with (
        AsyncEngine(
            models,
            max_num_seqs=options.max_batch,
            max_waiting=options.max_waiting,
            cache_bytes=cache,
            cache_dir=options.cache_dir,
            cache_disk_bytes=disk,
            sessions=options.sessions,
            session_limits=SessionLimits(options.max_sessions, session_bytes),
            max_owned=options.max_key_requests or options.max_batch + options.max_waiting // 2,
        ) as engine,
        opened_swarm(folder, engine) as swarm,
        Server(engine, settings, options.host, options.port, swarm=swarm) as server,
        stop_on_signal(f"running requests get {options.grace:g} s to finish") as stop,
    ):
        for model, name, path in adapters:
            engine.load_adapter(model, name, path)
        gc.collect()
        gc.freeze()  # what serving needs is there: a collection need not look at it again
        report_ready(options, server, engine)
        while not stop.wait(0.5):
            if not server.alive:
                raise WorkError("the server stopped unexpectedly")
        server.stop(options.grace)
        return stop.number


def checked_paths(options: ServeOptions) -> dict[str, Path]:
    """The models to serve by name; none of a swarm, whose folder names them."""
    if options.swarm is not None and options.models:
        raise InputError("--swarm names the models that are served", "leave out the others")
    paths = model_paths(options.models or []) if options.swarm is None else {}
    if options.pathways is not None and len(paths) != 1:
        raise InputError("--pathways is for one model", "serve one, or leave it out")
    return paths


def memory_limit(options: ServeOptions, paths: dict[str, Path]) -> int | None:
    """The bytes of --memory, which is for one model."""
    limit = memory_size(options.memory)
    if limit is not None and (options.swarm is not None or len(paths) > 1):
        raise InputError("--memory is for one model", "serve one, or leave it out")
    return limit


def swarm_folder(path: Path) -> SwarmFolder:
    """The swarm at `path`; its swarm.yaml is read."""
    from synthe_core.swarm.folder import SwarmFolder

    folder = SwarmFolder(path)
    _ = folder.spec
    return folder


def swarm_models(folder: SwarmFolder | None, device: str, weights: str) -> list[LoadedModel]:
    """The models of the swarm; none without a folder."""
    if folder is None:
        return []
    from synthe_core.swarm.models import load_models

    return load_models(folder, device, weights)


@contextlib.contextmanager
def opened_swarm(folder: SwarmFolder | None, engine: AsyncEngine) -> Iterator[Swarm | None]:
    """The swarm on the engine that has its models; None without a folder."""
    if folder is None:
        yield None
        return
    from synthe_core.swarm.team import Swarm
    from synthe_core.swarm.watcher import Watcher

    swarm = Swarm(folder, engine)
    for name, error in swarm.unavailable.items():
        log(f"{name} is unavailable: {error.message}")
    try:
        with Watcher(swarm, log=log):
            yield swarm
    finally:
        swarm.close()


def model_paths(models: list[str]) -> dict[str, Path]:
    """The path of every model by name. Raises InputError for a duplicate or invalid name."""
    paths: dict[str, Path] = {}
    for text in models or [str(newest_run())]:
        given, named = split_named(text)
        path = find_model(named)
        name = given or ""
        if given is None:
            name = re.sub(r"[^A-Za-z0-9_.-]", "-", model_name(path))
        if not NAME.fullmatch(name):
            raise InputError(
                f"'{name}' is not a valid model name", "use letters, digits, dots, dashes and underscores: NAME=PATH"
            )
        if name in paths:
            raise InputError(f"two models are named '{name}'", f"name one of them, for example {name}-2={path}")
        if not path.exists():
            raise InputError(
                f"no such model: {path}",
                "a run, a checkpoint, a .synapse or GGUF file, a Hugging Face folder, or ORG/NAME",
            )
        paths[name] = path
    return paths


def newest_run() -> Path:
    """The run in runs/ that was modified last."""
    runs = [
        path for path in Path("runs").glob("*") if (path / "checkpoints").is_dir() or (path / "manifest.json").is_file()
    ]
    if not runs:
        raise InputError("no model given, and runs/ has no runs", "name one: synthe serve runs/60m, or a .synapse file")
    return max(runs, key=lambda path: path.stat().st_mtime)


def parse_adapter(text: str, paths: dict[str, Path]) -> tuple[str, str, Path]:
    """`[MODEL:]NAME=DIR` as model, name and path. MODEL may be left out if there is only one."""
    left, equals, path = text.partition("=")
    model, colon, name = left.rpartition(":")
    if not colon and len(paths) == 1:
        model = next(iter(paths))
    if not equals or model not in paths or not NAME.fullmatch(name):
        raise InputError(f"--adapter {text}: expected MODEL:NAME=DIR", f"the models are {', '.join(paths)}")
    folder = find_model(path)
    if not folder.exists():
        raise InputError(f"--adapter {text}: no such folder: {path}")
    return model, name, folder


def settings_of(options: ServeOptions) -> Settings:
    """Access rules and limits. Raises InputError for a server that other machines could use without a key."""
    from synthe_core.serving.api.middleware import LOOPBACK
    from synthe_core.serving.api.server import is_loopback
    from synthe_core.serving.api.settings import Settings, silent

    roles = read_keys(options.api_key_file) if options.api_key_file else {}
    if options.admin_key_file:
        roles |= dict.fromkeys(read_keys(options.admin_key_file, "--admin-key-file"), "admin")
    keys = tuple(roles)
    loopback = is_loopback(options.host)
    if not loopback and not keys and not options.insecure:
        raise InputError(
            f"--host {options.host} accepts other machines, and no API key is set",
            "require one with --api-key-file FILE, or allow everybody with --insecure",
        )
    for origin in options.cors_origin or ():
        if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
            raise InputError(f"--cors-origin {origin}: not an origin", "scheme and host, as https://example.org")
    for folder in options.adapters or ():
        if not folder.is_dir():
            raise InputError(f"--adapters {folder}: no such folder")
    from synthe_core.agents.catalog import tools_named

    hosts = {options.host.lower(), *(name.lower() for name in options.allow_host or ())}
    return Settings(
        keys=tuple(key for key in keys if roles[key] != "admin"),
        admin_keys=tuple(key for key in keys if roles[key] == "admin"),
        reviewer_keys=tuple(key for key in keys if roles[key] == "reviewer"),
        keyless_role="admin" if loopback else "user",
        shared=options.shared,
        hosts=LOOPBACK | hosts if loopback else None,
        origins=tuple(options.cors_origin or ()),
        adapters=tuple(folder.absolute() for folder in options.adapters or ()),
        max_body=size_option(options.max_body, "--max-body"),
        max_prompt=options.max_prompt,
        max_tokens=options.max_tokens,
        max_n=options.max_n,
        max_adapters=options.max_adapters,
        tools=tuple(tools_named(options.tools, unsafe=options.unsafe_tools)),
        open_objects=options.open_objects,
        log_prompts=options.log_prompts,
        log=silent if options.quiet else log,
    )


def read_keys(path: Path, option: str = "--api-key-file") -> dict[str, str]:
    """The API keys of a file with their roles. Raises InputError for one that is short enough to guess."""
    keys = roles_in(path, option)
    if short := [key for key in keys if len(key) < SHORTEST_KEY]:
        raise InputError(
            f"{option} {path}: a key of {len(short[0])} characters is too short",
            f"use at least {SHORTEST_KEY}: openssl rand -hex 32",
        )
    if path.expanduser().stat().st_mode & 0o044:
        say(f"warning: {path} is readable by other users: chmod 600 {path}")
    return keys


def report_ready(options: ServeOptions, server: Server, engine: AsyncEngine) -> None:
    """Prints the address, the models and the limits, and opens the browser for `synthe up`."""
    models = [
        {
            "name": name,
            "path": str(model.path),
            "parameters": model.parameter_count(),
            "weights": model.weights,
            "speculation": None if model.speculation is None else model.speculation.summary,
            "state_bytes_per_sequence": model.state_bytes(options.max_prompt + options.max_tokens),
            "adapters": sorted(model.adapters),
        }
        for name, model in engine.models.items()
    ]
    if options.as_json:
        ready = {"event": "ready", "url": server.url, "models": models, "max_batch": options.max_batch}
        print(json.dumps(ready), flush=True)
    for line in summary(options, engine):
        say(line)
    say(f"ready at {server.url}  (press Ctrl-C to stop)")
    if options.browser and not (has_screen() and webbrowser.open(server.url)):
        say("no browser available: open the address yourself")


def state_size(model: LoadedModel, longest: int) -> str:
    """The memory that one sequence needs beside the weights."""
    longest = min(longest, model.max_length or longest)
    short, most = model.state_bytes(SHORT_SEQUENCE), model.state_bytes(longest)
    if short == most:
        return f"{format_size(most)} of state per sequence"
    return (
        f"{format_size(short)} of state per sequence at {SHORT_SEQUENCE:,} tokens, {format_size(most)} at {longest:,}"
    )


def has_screen() -> bool:
    """Whether a browser would open a window, rather than use this terminal."""
    return not sys.platform.startswith("linux") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def summary(options: ServeOptions, engine: AsyncEngine) -> list[str]:
    """A line for every model and adapter, and one for the limits."""
    lines = []
    for name, model in engine.models.items():
        facts = [f"{format_count(model.parameter_count())} parameters"]
        facts += filter(None, [model.weights_summary, model.memory_summary])
        if model.speculation is not None:
            facts.append(f"drafts: {model.speculation.summary}")
        facts.append(state_size(model, options.max_prompt + options.max_tokens))
        if model.tokenizer.chat_template is None:
            facts.append("no chat template: chat prompts are lines of `User:` and `Assistant:`")
        if defaults := str(model.defaults):
            facts.append(f"generation_config.json: {defaults}")
        lines.append(f"{name}  {'  '.join(facts)}")
        lines += [f"{name}:{adapter}  adapter" for adapter in sorted(model.adapters)]
    if options.swarm is not None:
        lines.append(f"swarm  {options.swarm}: requests name `swarm` or a specialist")
    status = engine.status()
    lines.append(
        f"up to {status['max_batch']} concurrent requests, {format_size(status['state_bytes_limit'])} of state; "
        f"up to {status['max_waiting']} queued; prefix cache {format_size(status['cache']['limit'])}"
    )
    if not (options.api_key_file or options.admin_key_file) and options.insecure:
        lines.append("warning: everybody who can reach this address can send requests")
    return lines


def log(line: str) -> None:
    say(f"{time.strftime('%H:%M:%S')}  {line}")


def say(line: str) -> None:
    """Prints a line of progress. stderr may be closed already."""
    with contextlib.suppress(OSError):
        print(escaped(line), file=sys.stderr, flush=True)
