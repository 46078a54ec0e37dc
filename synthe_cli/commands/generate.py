"""`synthe generate`: text from a checkpoint, streamed."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.escape import json_text, printable
from synthe_cli.help import SETTINGS, Command
from synthe_cli.hub_models import find_model
from synthe_cli.options import (
    AdapterOption,
    CheckpointArgument,
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
    device_option,
    find_checkpoint,
    memory_size,
    sampled,
    show_defaults,
    show_speculation,
    show_speed,
    show_weights,
    speculate_with,
    speculation,
    uses_generation_config,
    with_defaults,
)
from synthe_cli.pathways_option import PathwaysOption, begin_with_pathways
from synthe_cli.startup import without_collection
from synthe_core.errors import InputError

if TYPE_CHECKING:
    from synthe_core.inference.offline import TextDelta
    from synthe_core.model.session import Session

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe generate runs/tiny --prompt "def "                        200 tokens, streamed
synthe generate runs/tiny -p "import " -n 500 --temperature 0.8 --top-p 0.95 --seed 1
synthe generate runs/tiny -p "class A" -p "class B" --json       a batch; one JSON line per prompt
synthe generate runs/tiny --prompt-file book.txt --state-out book.state -n 0
synthe generate runs/tiny --state-in book.state -p "And then "   continues exactly, without reading the book again
synthe generate runs/tiny -f notes.txt -t 0 --speculate ngram    the same text sooner, where it repeats itself
synthe generate runs/1.3b -p "import " --memory 2GiB             more weights than memory: read in each pass
synthe generate runs/letters -p "Dear "                          an adapter is a checkpoint like any other
synthe generate runs/tiny --adapter runs/letters -p "Dear "      the same, with the base model named
synthe train tiny | synthe generate - -p "import "\n""",
)
def generate(
    context: typer.Context,
    checkpoint: CheckpointArgument,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", metavar="TEXT", help="Text to continue. Repeat for a batch.")
    ] = None,
    prompt_file: Annotated[
        list[Path] | None,
        typer.Option("--prompt-file", "-f", metavar="FILE", help="File with a text to continue. Repeat for a batch."),
    ] = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=0, metavar="N", help="Number of tokens to generate.")
    ] = 200,
    temperature: TemperatureOption = 1.0,
    top_k: TopKOption = 0,
    top_p: TopPOption = 1.0,
    min_p: MinPOption = 0.0,
    repetition_penalty: RepetitionOption = 1.0,
    stop: Annotated[
        list[str] | None, typer.Option("--stop", metavar="TEXT", help="Stop before this text. Repeatable.")
    ] = None,
    seed: Annotated[
        int,
        typer.Option("--seed", metavar="N", min=0, max=2**62, help="Random seed. The same seed gives the same text."),
    ] = 0,
    state_in: Annotated[
        Path | None,
        typer.Option("--state-in", metavar="FILE", help="Continue from this saved or packed session."),
    ] = None,
    state_out: Annotated[
        Path | None, typer.Option("--state-out", metavar="FILE", help="Save the session at the end to this file.")
    ] = None,
    pathways: PathwaysOption = None,
    generation_config: GenerationConfigOption = "auto",
    adapter: AdapterOption = None,
    device: DeviceOption = None,
    weights: WeightsOption = "auto",
    memory: MemoryOption = None,
    speculate: SpeculateOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a prompt with a trained model, and stream the text.

    Several prompts form one batch; each text is printed under a heading, or as a JSON line. Without a prompt the model
    starts a new document.
    """
    path = find_checkpoint(checkpoint)
    prompts = [*(prompt or []), *map(_read, prompt_file or [])] or [""]
    recommended = uses_generation_config(generation_config)
    values = {
        "temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    with without_collection():
        sampled(values)  # before a model is loaded
        drafts, limit = speculation(speculate), memory_size(memory)
        if pathways and state_in:
            raise InputError("--pathways is for new texts, and --state-in continues one", "leave out one of them")

        from synthe_core.hardware.placement import choose_device
        from synthe_core.hardware.probe import probe
        from synthe_core.inference import offline
        from synthe_core.interop.load import load_checkpoint
        from synthe_core.model.session import Session
        from synthe_core.storage.checkpoint import Checkpoint
        from synthe_core.storage.hub.snapshot import model_name

        where = choose_device(device_option(device, limit), probe()).value
        adapter = find_model(adapter) if adapter else None
        opened = Checkpoint.open(adapter, base=path) if adapter else Checkpoint.open(path)
        model = load_checkpoint(
            opened, model_name(path), where, batch_invariant=drafts is not None,
            weights=weights, memory=limit, texts=len(prompts),
        )  # fmt: skip
    show_weights(model)
    speculate_with([model], drafts, where)
    begin_with_pathways(model, pathways)
    session = opened.session(state_in, model.model) if state_in else None
    model.recommended = recommended
    show_defaults(model.defaults)
    sampling = sampled(with_defaults(context, values, model.defaults.sampling))
    tokens = with_defaults(context, {"tokens": tokens}, model.defaults.limits("tokens"))["tokens"]
    if state_out:
        Session.check_target(state_out)
    deltas = offline.generate(
        model, prompts, tokens, sampling=sampling, seed=seed, stop=stop or (), session=session,
        keep_session=state_out is not None,
    )  # fmt: skip
    after = _print_deltas(deltas, prompts, as_json)
    show_speculation(model.speculation)
    show_speed(model)
    if state_out and after is not None:
        after.save(state_out, model.model)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such prompt file: {path}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 text (byte {error.start})", "a prompt must be text") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def _print(text: str) -> None:
    """Prints a piece of text. On a terminal, control characters are replaced."""
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _print_deltas(deltas: Generator[TextDelta, None, Session | None], prompts: list[str], as_json: bool) -> Any:
    """Prints what is generated, of a single prompt as it comes; returns the session."""
    texts = [""] * len(prompts)
    streamed = len(prompts) == 1 and not as_json
    if streamed:
        _print(prompts[0])
    while True:
        try:
            row, text = next(deltas)
        except StopIteration as end:
            session = end.value
            break
        texts[row] += text
        if streamed:
            _print(text)
    if streamed:
        print()
    else:
        _print_all(prompts, texts, as_json)
    return session


def _print_all(prompts: list[str], texts: list[str], as_json: bool) -> None:
    """Prints every prompt with its text, whole."""
    for index, (each, text) in enumerate(zip(prompts, texts, strict=True)):
        print(json_text({"prompt": each, "text": text}) if as_json else _entry(index, each, text))


def _entry(index: int, prompt: str, text: str) -> str:
    text = prompt + text
    return f"--- {index + 1}\n{printable(text) if sys.stdout.isatty() else text}"
