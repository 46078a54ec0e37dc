"""`synthe chat`: a conversation with a model in the terminal, here or on a running server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.api_key import keys_in
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import (
    AdapterOption,
    DeviceOption,
    JsonOption,
    MinPOption,
    RepetitionOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    complete_run,
    sampled,
)
from synthe_core.errors import InputError

app = typer.Typer(**SETTINGS)
WORN = "adapter"
"""The name here of the model's adapter."""


@app.command(
    cls=Command,
    epilog="""\
synthe chat runs/60m                                    a conversation; /help lists its commands
synthe chat story.synapse --system "You tell stories."
synthe chat runs/60m --adapter runs/letters             the model with an adapter
synthe chat runs/60m --session evening                  goes on with it, today or tomorrow
synthe chat --url http://127.0.0.1:6900                 with the model of a running `synthe serve`
synthe chat 60m --url http://127.0.0.1:6900             with that one of its models
synthe chat runs/60m --json < questions.txt             one line, one message; only answers are printed""",
)
def chat(
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="A run, checkpoint or .synapse file; with --url the name of a model there.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Talk with a running server instead of a model here.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="The server's key; else SYNTHE_API_KEY holds it."),
    ] = None,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="What the model is told before all else.")
    ] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="NAME", help="Go on with the conversation of this name, or begin it."),
    ] = None,
    adapter: AdapterOption = None,
    sessions: Annotated[
        Path | None,
        typer.Option("--sessions", metavar="DIR", help="Where conversations are kept.  [default: in synthe's cache]"),
    ] = None,
    tokens: Annotated[int, typer.Option("--tokens", "-n", min=1, metavar="N", help="The longest answer.")] = 400,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    seed: Annotated[
        int | None,
        typer.Option("--seed", metavar="N", min=0, max=2**62, help="The same seed gives the same answers."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Talk with a model in the terminal.

    Every turn costs its new words only: what came before is in the model's state. Ctrl-C stops an answer, and at the
    prompt it leaves. From a pipe, every line is a message, and only answers are printed.
    A model that was taught no conversation goes on with your text instead.
    """
    if url is None and checkpoint is None:
        raise InputError("there is no model to talk with", "name a checkpoint, or a server with --url")
    if url is not None and (device or sessions or adapter):
        raise InputError(
            "--device, --sessions and --adapter are the server's to choose",
            "leave them out with --url; a model with an adapter is asked for as MODEL:ADAPTER",
        )
    if key_file is not None and url is None:
        raise InputError("--api-key-file is for a server", "add --url")

    from synthe_cli.chat_loop import Loop
    from synthe_core.chat.conversation import Asked, Talk

    values = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    asked = Asked(tokens, sampled(values), seed)

    def converse(talk: Talk) -> None:
        try:
            Loop(talk, asked, as_json=as_json).run()
        finally:
            talk.close()

    if url is not None:
        from synthe_core.chat.remote import ServerTalk

        key = keys_in(key_file)[0] if key_file else os.environ.get("SYNTHE_API_KEY")
        converse(ServerTalk(url, checkpoint, key=key, system=system, session=session))
        return

    from synthe_core.chat.local import EngineTalk
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import cache_dir, probe
    from synthe_core.inference.async_engine import AsyncEngine
    from synthe_core.inference.loaded_model import LoadedModel

    assert checkpoint is not None
    served = LoadedModel.load(Path(checkpoint).expanduser(), device=choose_device(device or "auto", probe()).value)
    if adapter is not None:
        served.load_adapter(WORN, adapter)
    folder = sessions or Path(cache_dir()) / "chats" / served.digest[:16]
    with AsyncEngine([served], sessions=folder) as engine:
        name = served.name if adapter is None else f"{served.name}:{WORN}"
        converse(EngineTalk(engine, name, system=system, session=session))
