"""`synthe swarm`: specialists on one base."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.commands import swarm_knowledge, swarm_learning, swarm_pairs, swarm_share, swarm_spawn
from synthe_cli.commands.swarm_options import FolderArgument
from synthe_cli.escape import escaped
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.hub_models import find_model
from synthe_cli.options import DeviceOption, JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_core.events import Result

if TYPE_CHECKING:
    from synthe_core.swarm.spec import SpecialistSpec

ABOUT = "Route requests to specialists on one model, check the answers, and learn from use."
app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The specialist's name.")]


app.add_typer(swarm_knowledge.app, name="knowledge")
app.add_typer(swarm_pairs.app, name="pairs")


@app.callback(help=ABOUT)
def group() -> None: ...


@app.command(
    cls=Command,
    short_help="Make the folder of a new swarm.",
    epilog="""\
synthe swarm init team --base model.gguf
synthe swarm init team --base ORG/NAME                  a model of the Hugging Face hub, downloaded first""",
)
def init(
    folder: Annotated[Path, typer.Argument(metavar="TEAM", help="The new folder.")],
    base: Annotated[
        str, typer.Option("--base", metavar="MODEL", help="A run, .synapse or GGUF file, model folder, or ORG/NAME.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Make the folder of a new swarm and print its path.

    Its swarm.yaml has every key with its meaning and default. All specialists run on the base: each is a system prompt,
    an adapter, or both.
    """
    find_model(base)
    from synthe_core.swarm.folder import SwarmFolder

    made = SwarmFolder.create(folder, base)
    with choose_renderer(as_json) as shown:
        shown.result(Result({"base": made.spec.base}, made.path))


@app.command(
    cls=Command,
    short_help="Add a specialist.",
    epilog="""\
synthe swarm add team python --capabilities python,debugging --prompt "You write Python."
synthe swarm add team python --capabilities python --adapter runs/python      the adapter is copied into the swarm
synthe swarm add team law --capabilities contracts --document terms.txt       a text that it has read
synthe swarm add team tutor --url https://api.example.org/v1 --model large --key-from API_KEY   another server""",
)
def add(
    folder: FolderArgument,
    name: NameArgument,
    capabilities: Annotated[
        str, typer.Option("--capabilities", "-c", metavar="WORDS", help="What it is good at, separated by commas.")
    ] = "",
    description: Annotated[str, typer.Option("--description", metavar="TEXT", help="A sentence about it.")] = "",
    prompt: Annotated[str, typer.Option("--prompt", "-p", metavar="TEXT", help="Its system prompt.")] = "",
    document: Annotated[
        list[Path] | None,
        typer.Option("--document", metavar="FILE", help="A text that follows the system prompt. Repeatable."),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option("--adapter", metavar="DIR", help="A LoRA adapter of the base: a run, or a folder of PEFT."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", help="Run it on another model than the base. With --url: its name there."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="Of a server with OpenAI's protocol. It answers as the fallback."),
    ] = None,
    key_from: Annotated[
        str | None,
        typer.Option("--key-from", metavar="NAME", help="The environment variable that has the key of that server."),
    ] = None,
    priority: Annotated[
        float,
        typer.Option("--priority", min=-1, max=1, metavar="N", help="Added to its estimated success when routing."),
    ] = 0.0,
    as_json: JsonOption = False,
) -> None:
    """Add a specialist to a swarm.

    Requests are first routed by the words of its capabilities and their meaning to the base model, later by what has
    succeeded. A running server takes a specialist on the base up within a second.
    """
    from synthe_core.errors import InputError
    from synthe_core.swarm.folder import SwarmFolder, relative_path

    swarm = SwarmFolder(folder)
    if adapter is not None:
        adapter = str(find_model(adapter))
    if model is not None and url is None:
        find_model(model)
    if url is not None and not model:
        raise InputError("--url needs the model's name there", "give --model NAME")
    if key_from is not None and url is None:
        raise InputError("--key-from goes with --url", "give the URL of the server")
    values = {
        "description": description,
        "capabilities": capabilities,
        "prompt": prompt,
        "documents": [relative_path(str(each), folder) for each in document or ()],
        "model": model if model is None or url is not None else relative_path(model, folder),
        "url": url,
        "key_from": key_from,
        "priority": priority,
    }
    spec = _spec(values)
    if not (prompt or document or adapter or model):
        raise InputError(
            f"nothing makes '{name}' differ from the base", "give it --prompt, --document, --adapter or --model"
        )
    added = swarm.add(name, spec, adapter)
    with choose_renderer(as_json) as shown:
        shown.result(Result({"specialist": name, **added.model_dump(mode="json", exclude_defaults=True)}, folder))


def _spec(values: dict[str, Any]) -> SpecialistSpec:
    """A specialist of the command's options. InputError for a value that none can have."""
    from pydantic import ValidationError

    from synthe_core.errors import InputError
    from synthe_core.swarm.spec import SpecialistSpec

    try:
        return SpecialistSpec.model_validate(values)
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        option = str(fault["loc"][0]).replace("_", "-") if fault["loc"] else "option"
        raise InputError(f"--{option}: {fault['msg'][:1].lower()}{fault['msg'][1:]}") from None


@app.command(
    cls=Command,
    short_help="Remove a specialist.",
    epilog="""\
synthe swarm remove team python             its requests go to the others
synthe swarm remove team python --json""",
)
def remove(folder: FolderArgument, name: NameArgument, as_json: JsonOption = False) -> None:
    """Remove a specialist from a swarm. Its adapters and the record of its answers stay."""
    from synthe_core.swarm.folder import SwarmFolder

    SwarmFolder(folder).remove(name)
    with choose_renderer(as_json) as shown:
        shown.result(Result({"specialist": name, "removed": True}, folder))


@app.command(
    cls=Command,
    short_help="Show the specialists and what they have done.",
    epilog="""\
synthe swarm status team
synthe swarm status team --json | jq .values.specialists""",
)
def status(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show the specialists of a swarm, their adapters, and their success by domain."""
    from synthe_cli.swarm_table import status_text
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.status import status as facts

    values = facts(SwarmFolder(folder))
    with choose_renderer(as_json) as shown:
        if as_json:
            shown.result(Result(values))
        else:
            print(escaped_lines(status_text(values)))


@app.command(
    cls=Command,
    short_help="Ask a swarm.",
    epilog="""\
synthe swarm ask team "Write a query and explain the index" --trace
synthe swarm ask team "What is 17 times 4?" --specialist maths
synthe swarm ask team "Where do I live?" --user ann --conversation evening      with what is known of ann
synthe swarm ask team "Name a river" --json | jq -r 'select(.event == "answered").text'""",
)
def ask(
    folder: FolderArgument,
    request: Annotated[str, typer.Argument(metavar="REQUEST", help="What is asked. - reads it from stdin.")],
    trace: Annotated[
        bool, typer.Option("--trace", help="Show on stderr who answers and why, their drafts, confidence and checks.")
    ] = False,
    specialist: Annotated[
        str | None,
        typer.Option("--specialist", metavar="NAME", help="Who answers, whatever the router says."),
    ] = None,
    synthesis: Annotated[
        str | None, typer.Option("--synthesis", metavar="best|write|fuse", help="How several answers become one.")
    ] = None,
    user: Annotated[str, typer.Option("--user", metavar="NAME", help="Whose facts are used.")] = "",
    conversation: Annotated[
        str, typer.Option("--conversation", metavar="NAME", help="Keep both turns, and learn facts from them.")
    ] = "",
    tokens: Annotated[
        int | None, typer.Option("--tokens", "-n", min=1, metavar="N", help="Maximum number of tokens of an answer.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", "-t", min=0, metavar="T", help="Sampling temperature. 0 is greedy.")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The same seed gives the same text.")] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask a swarm, and print the answer as it is generated.

    The last line on stderr has the answer's id, under which `synthe swarm rate` takes a rating.
    """
    from synthe_cli.swarm_answer import show_answer
    from synthe_core.hardware.mkl import request_strict_mode

    request_strict_mode()
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.team import SwarmRequest, open_swarm

    swarm = SwarmFolder(folder)
    _ = swarm.spec
    text = sys.stdin.read() if request == "-" else request
    with open_swarm(swarm, choose_device(device or "auto", probe()).value) as opened:
        for name, error in opened.unavailable.items():
            print(escaped(f"warning: {name} is unavailable: {error.message}"), file=sys.stderr)
        events = opened.answer(
            SwarmRequest(
                [{"role": "user", "content": text}],
                specialist=specialist,
                user=user,
                conversation=conversation,
                max_tokens=tokens,
                synthesis=synthesis,
                sampling={} if temperature is None else {"temperature": temperature},
                seed=seed,
                stream=not as_json,
            )
        )
        show_answer(events, trace=trace, as_json=as_json)


@app.command(
    cls=Command,
    short_help="Say how good an answer was.",
    epilog="""\
synthe swarm rate team ans_1f0c --good
synthe swarm rate team ans_1f0c --bad --right python             python should have answered
synthe swarm rate team ans_1f0c --bad --correction "It is 4."    a better answer""",
)
def rate(
    folder: FolderArgument,
    answer: Annotated[str, typer.Argument(metavar="ANSWER", help="The id that `ask` prints.")],
    good: Annotated[bool | None, typer.Option("--good/--bad", help="Whether the answer was right.")] = None,
    right: Annotated[
        str | None, typer.Option("--right", metavar="NAME", help="The specialist that should have answered.")
    ] = None,
    correction: Annotated[
        str | None,
        typer.Option("--correction", metavar="TEXT", help="A better answer. It is reviewed before it is learned."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Rate an answer. Router, pathways and confidence learn from it; a correction becomes a preference pair."""
    from synthe_core.errors import InputError
    from synthe_core.swarm.feedback.feedback import Feedback
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.opening import open_store, pair_limits
    from synthe_core.swarm.record import Record

    if good is None or (good and correction is not None):
        raise InputError("was the answer good or bad?", "give --good or --bad; a corrected answer is bad")
    swarm = SwarmFolder(folder)
    store = open_store(swarm)
    record = Record(store, swarm.spec)
    feedback, user = Feedback(store, limits=pair_limits(swarm), teach=record.rate), record.answers.get(answer).user
    if correction is None:
        feedback.rate(answer, float(good), user, right)
    else:
        feedback.correct(answer, correction, user, right)
    store.close()
    with choose_renderer(as_json) as shown:
        shown.result(Result({"answer": answer, "success": float(good)}, folder))


@app.command(
    cls=Command,
    short_help="Show which combinations of specialists succeed.",
    epilog="""\
synthe swarm pathways team                  the strongest combinations first
synthe swarm pathways team --json""",
)
def pathways(folder: FolderArgument, as_json: JsonOption = False) -> None:
    """Show the strength of every combination of specialists that has answered, the strongest first."""
    from synthe_cli.swarm_table import pathways_text
    from synthe_core.swarm.folder import SwarmFolder
    from synthe_core.swarm.status import pathways as facts

    values = facts(SwarmFolder(folder))
    with choose_renderer(as_json) as shown:
        if as_json:
            shown.result(Result({"pathways": values}))
        else:
            print(escaped_lines(pathways_text(values)))


@app.command(
    cls=Command,
    short_help="Serve a swarm over HTTP.",
    epilog="""\
synthe swarm serve team                at http://127.0.0.1:6900, for this machine only
synthe swarm serve team --port 0       a free port""",
)
def serve(
    folder: FolderArgument,
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, metavar="N", help="Port to listen on. 0 takes a free one.")
    ] = 6900,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Serve a swarm: `synthe serve --swarm TEAM`, which has more options."""
    from synthe_cli.commands.serve_options import ServeOptions
    from synthe_cli.commands.serve_run import run

    if run(ServeOptions(swarm=folder, port=port, device=device, as_json=as_json)) == signal.SIGINT:
        raise typer.Exit(130)


def escaped_lines(text: str) -> str:
    """The text with control characters escaped in every line."""
    return "\n".join(escaped(line) for line in text.split("\n"))


for part in (swarm_learning, swarm_spawn, swarm_share):  # after the commands that make a swarm and use it
    app.registered_commands += part.app.registered_commands
