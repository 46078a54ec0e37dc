"""`synthe chat`: a conversation with a model in the terminal, in this process or on a server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.api_key import keys_in
from synthe_cli.chat_documents import open_documents, retriever_for
from synthe_cli.help import SETTINGS, Command
from synthe_cli.hub_models import find_model
from synthe_cli.options import (
    AdapterOption,
    DeviceOption,
    GenerationConfigOption,
    JsonOption,
    MemoryOption,
    MinPOption,
    RepetitionOption,
    SpeculateOption,
    TemperatureOption,
    TopKOption,
    TopPOption,
    WeightsOption,
    complete_run,
    device_option,
    memory_size,
    sampled,
    show_defaults,
    show_weights,
    speculate_with,
    speculation,
    uses_generation_config,
    with_defaults,
)
from synthe_cli.tool_options import ToolsOption, UnsafeToolsOption
from synthe_core.errors import InputError

if TYPE_CHECKING:
    from synthe_core.inference.loaded_model import LoadedModel
    from synthe_core.inference.speculation.settings import SpeculationSettings

app = typer.Typer(**SETTINGS)
ADAPTER_NAME = "adapter"
"""The name here of the model's adapter."""


@app.command(
    cls=Command,
    epilog="""\
synthe chat runs/60m                                    start a conversation; /help lists the commands
synthe chat Qwen/Qwen3-0.6B                             a model of the Hugging Face hub, downloaded first
synthe chat story.synapse --system "You tell stories."
synthe chat runs/60m --adapter runs/letters             the model with an adapter
synthe chat runs/60m --speculate draft=runs/tiny        a smaller model drafts the answers
synthe chat runs/60m --session evening                  resume this conversation, or start it
synthe chat runs/60m --tools python                     the model runs Python programs, and corrects them
synthe chat runs/60m --tools python --attempts 4        the answer that most of four attempts have
synthe chat runs/60m --documents handbook/              answers with passages of these files, and cites them
synthe chat --url http://127.0.0.1:6900                 use the model of a running `synthe serve`
synthe chat 60m --url http://127.0.0.1:6900             use this one of its models
synthe chat runs/60m --json < questions.txt             one message per line; prints the answers only""",
)
def chat(
    context: typer.Context,
    checkpoint: Annotated[
        str | None,
        typer.Argument(
            metavar="[CHECKPOINT]",
            help="A run, checkpoint, model file or folder, or ORG/NAME of the hub. With --url: a model name of the "
            "server.",
            show_default=False,
            autocompletion=complete_run,
        ),
    ] = None,
    url: Annotated[
        str | None, typer.Option("--url", metavar="URL", help="Use a running server instead of a local model.")
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option("--api-key-file", metavar="FILE", help="File with the server's API key. Default: SYNTHE_API_KEY."),
    ] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="System prompt.")] = None,
    session: Annotated[
        str | None,
        typer.Option("--session", metavar="NAME", help="Resume the conversation of this name, or start it."),
    ] = None,
    adapter: AdapterOption = None,
    sessions: Annotated[
        Path | None,
        typer.Option("--sessions", metavar="DIR", help="Folder of saved conversations.  [default: in synthe's cache]"),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Maximum number of tokens of an answer.")
    ] = 400,
    temperature: TemperatureOption = 0.8,
    top_k: TopKOption = 0,
    top_p: TopPOption = 0.95,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed", metavar="N", min=0, max=2**62, help="Random seed. The same seed gives the same answers."
        ),
    ] = None,
    generation_config: GenerationConfigOption = "auto",
    device: DeviceOption = None,
    weights: WeightsOption = "auto",
    memory: MemoryOption = None,
    speculate: SpeculateOption = None,
    tools: ToolsOption = None,
    unsafe_tools: UnsafeToolsOption = False,
    transcripts: Annotated[
        Path | None,
        typer.Option(
            "--transcripts", metavar="FILE", help="With --tools, add each answer with its calls to this file, for sft."
        ),
    ] = None,
    attempts: Annotated[
        int,
        typer.Option(
            "--attempts",
            min=1,
            max=32,
            metavar="N",
            help="Attempts at each answer, from one reading of the prompt. Shown is the answer that most of them have, "
            "and of those the likeliest.",
        ),
    ] = 1,
    documents: Annotated[
        Path | None,
        typer.Option(
            "--documents",
            metavar="PATH",
            help="A folder or file, indexed first, or an index of `synthe documents`: each message is read with the "
            "passages that belong to it, which are listed below the answer.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Chat with a model in the terminal.

    A turn evaluates only its new tokens: the model's state holds the conversation so far. Ctrl-C stops an answer; at
    the prompt it leaves. From a pipe, every line is a message, and only answers are printed. If a model has no chat
    template, it continues your text instead.
    """
    local_only = any((device, sessions, adapter, speculate, memory, weights != "auto"))
    _check(checkpoint, url, key_file, session, tools or attempts > 1, local_only, documents)

    from synthe_cli.chat_loop import ChatLoop
    from synthe_core.chat.conversation import ChatOptions, Conversation
    from synthe_core.inference.generation_defaults import GenerationDefaults

    values = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    recommended = uses_generation_config(generation_config)
    sampled(values)  # before a model is loaded
    drafts, limit = speculation(speculate), memory_size(memory)

    def converse(conversation: Conversation) -> None:
        defaults = conversation.defaults if recommended else GenerationDefaults()
        show_defaults(defaults)
        sampling = sampled(with_defaults(context, values, defaults.sampling))
        count = with_defaults(context, {"tokens": tokens}, defaults.limits("tokens"))["tokens"]
        try:
            ChatLoop(conversation, ChatOptions(count, sampling, seed), as_json=as_json).run()
        finally:
            conversation.close()

    if url is not None:
        from synthe_core.chat.remote import RemoteConversation

        converse(RemoteConversation(url, checkpoint, key=_key(key_file), system=system, session=session))
        return

    from synthe_core.agents.catalog import tools_named

    called = tools_named(tools, unsafe=unsafe_tools)
    searcher = None if documents is None else open_documents(documents)
    served = _loaded(checkpoint or "", device, weights, drafts, limit)
    if adapter is not None:
        served.load_adapter(ADAPTER_NAME, find_model(adapter))
    served.recommended = recommended

    from synthe_core.chat.local import LocalConversation
    from synthe_core.hardware.probe import cache_dir
    from synthe_core.inference.async_engine import AsyncEngine

    folder = sessions or Path(cache_dir()) / "chats" / served.digest[:16]
    with AsyncEngine([served], sessions=folder) as engine:
        name = served.name if adapter is None else f"{served.name}:{ADAPTER_NAME}"
        more: dict[str, Any] = {"system": system, "retriever": retriever_for(searcher, served)}
        if called or attempts > 1:
            from synthe_core.chat.with_tools import ToolConversation

            converse(ToolConversation(engine, name, called, transcripts=transcripts, attempts=attempts, **more))
            return
        converse(LocalConversation(engine, name, session=session, **more))


def _key(file: Path | None) -> str | None:
    """The server's API key."""
    return keys_in(file)[0] if file else os.environ.get("SYNTHE_API_KEY")


def _loaded(
    checkpoint: str, device: str | None, weights: str, drafts: SpeculationSettings | None, limit: int | None
) -> LoadedModel:
    """The model, with what is special about how it is decoded written to stderr."""
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.interop.load import load_model

    where = choose_device(device_option(device, limit), probe()).value
    model = load_model(find_model(checkpoint), device=where, weights=weights, memory=limit, texts=1)
    show_weights(model)
    speculate_with([model], drafts, where)
    return model


def _check(
    checkpoint: str | None,
    url: str | None,
    key_file: Path | None,
    session: str | None,
    runs_agent: str | bool | None,
    local_only: bool,
    documents: Path | None,
) -> None:
    """InputError for options that do not go together. runs_agent: whether an agent answers. local_only: whether one is
    given that a server has no use for."""
    if url is None and checkpoint is None:
        raise InputError("no model given", "name a checkpoint, or a server with --url")
    if url is not None and local_only:
        raise InputError(
            "--device, --weights, --memory, --speculate, --sessions and --adapter do not apply to a server",
            "leave them out with --url; name an adapter of the server as MODEL:ADAPTER",
        )
    if runs_agent and (url is not None or session is not None):
        raise InputError(
            "--tools and --attempts do not go with --url and --session", "`synthe serve --tools` runs tools on a server"
        )
    if documents is not None and url is not None:
        raise InputError(
            "--documents does not go with --url", "`synthe serve --tools search=INDEX` has them on a server"
        )
    if key_file is not None and url is None:
        raise InputError("--api-key-file needs --url", "name the server with --url")
