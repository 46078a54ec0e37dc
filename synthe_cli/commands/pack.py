"""`synthe pack`: one file that carries a model, its adapters, its memory and its proof."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli.commands.pack_text import differences, overview
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import CheckpointArgument, DataOption, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import closest, unknown
from synthe_core.events import Result, results
from synthe_core.units import format_size

ABOUT = (
    "Pack a model, its adapters and its memory into one file (synthe pack CHECKPOINT -o FILE), and inspect such files."
)
MAKE = "make"


class PackGroup(Group):
    """What is no command of the group is a checkpoint to be packed: `make` is understood."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and args[0] not in ("-h", "--help"):
            word = args[0]
            if word.isalpha() and not Path(word).exists() and closest(word, names):
                raise unknown("command", word, names)
            return MAKE, self.get_command(ctx, MAKE), args
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0].startswith("-") and args[0] not in ("-h", "--help"):
            args = [MAKE, *args]  # an option before the checkpoint, or `-` for stdin
        return super().parse_args(ctx, args)


app = typer.Typer(cls=PackGroup, help=ABOUT, **SETTINGS)
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A .synapse file, or such a file unpacked.")]


@app.callback(help=ABOUT)
def _group() -> None: ...


@app.command(
    MAKE,
    cls=Command,
    short_help="Pack a checkpoint; the word `make` may be left out.",
    epilog="""\
synthe pack runs/60m -o synthe-60m.synapse
synthe pack runs/60m -o small.synapse --quantize int4 --data books.txt
synthe pack runs/60m -o team.synapse --adapter code=runs/lora-code --agent agent.yaml --knowledge graph.sqlite
synthe pack runs/60m -o code.synapse --base ORG/NAME@v1 --adapter code=runs/lora-code    without the weights
synthe pack runs/tiny | synthe generate - --prompt "def \"""",
)
def make(
    checkpoint: CheckpointArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file; NAME.synapse by default.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=DIR", help="An adapter in PEFT's layout. Repeatable."),
    ] = None,
    knowledge: Annotated[
        Path | None, typer.Option("--knowledge", metavar="FILE", help="An SQLite database; it may be in use.")
    ] = None,
    session: Annotated[
        list[Path] | None,
        typer.Option("--session", metavar="FILE", help="What `generate --state-out` wrote. Repeatable."),
    ] = None,
    agent: Annotated[
        Path | None, typer.Option("--agent", metavar="FILE", help="agent.yaml: the specialists that it offers.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option("--quantize", "-q", metavar="KIND", help="int8 or int4 weights; what that costs is measured."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="By default the recipe's name.")] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="The model's licence, as apache-2.0.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="ORG/NAME@REV", help="Leave the weights out: they are there on the hub."),
    ] = None,
    weights: Annotated[
        bool, typer.Option("--weights/--no-weights", help="Or leave them out, to be found by digest beside the file.")
    ] = True,
    data: DataOption = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Measure quantisation on so many.")
    ] = 16_384,
    as_json: JsonOption = False,
) -> None:
    """Pack a checkpoint and what belongs to it into one file, and print the file's path.

    Every verb that takes a checkpoint takes the file as it is; its weights are mapped in place. The same inputs give
    the same bytes. --data is the text that quantisation is measured on, by default the recipe's validation text.
    """
    path = find_checkpoint(checkpoint)

    from synthe_core.packing.pack import PackOptions, pack

    parts = PackOptions(
        adapters=adapter or (),
        knowledge=knowledge,
        sessions=session or (),
        agent=agent,
        quantize=quantize,
        name=name,
        licence=licence,
        base=base,
        weights=weights,
        sources=data or (),
        tokens=tokens,
    )
    with choose_renderer(as_json) as shown:
        for result in results(pack(path, out, parts), shown.show):
            size: Any = result.values["bytes"]
            shown.result(result if as_json else Result({"size": format_size(size)}, result.path))


@app.command(
    cls=Command,
    short_help="What a file carries.",
    epilog="""\
synthe pack inspect synthe-60m.synapse
synthe pack inspect synthe-60m.synapse --json | jq .values.base.quantization
synthe pack inspect old-specialist.synapse             a folder of titan-synapse 0.2""",
)
def inspect(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show what a file carries: model, quantisation, adapters, knowledge, scores, digests, and who signed it."""
    from synthe_core.packing.inspect import inspect

    with choose_renderer(as_json) as shown:
        for result in results(inspect(file.expanduser()), shown.show):
            if as_json:
                shown.result(result)
            else:
                print(overview(result.values))


@app.command(
    cls=Command,
    short_help="Whether a file is what was packed, and who signed it.",
    epilog="""\
synthe pack verify synthe-60m.synapse
synthe pack verify synthe-60m.synapse --key k.pub       and that it was signed with this key
synthe pack verify synthe-60m.synapse --json""",
)
def verify(
    file: FileArgument,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="A public Ed25519 key, PEM or OpenSSH.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check every member of a file by its SHA-256, and the signature where there is one.

    Says signed by whom, unsigned, or tampered with and in which member. A signature says that whoever has the key
    signed these bytes; whose key it is, --key says.
    """
    from synthe_core.packing.verify import verify

    with choose_renderer(as_json) as shown:
        for result in results(verify(file.expanduser(), key), shown.show):
            if as_json:
                shown.result(result)
                continue
            shown.close()
            values = result.values
            who = f"signed by {values['signed by']}" if values["signed by"] else "unsigned"
            trust = f", which is {key}" if key else ""
            print(f"{who}{trust}: {values['members']} members as they were packed")


@app.command(
    cls=Command,
    short_help="Sign a file with an Ed25519 key.",
    epilog="""\
synthe pack sign synthe-60m.synapse --key k.pem
synthe pack sign synthe-60m.synapse --key ~/.ssh/id_ed25519""",
)
def sign(
    file: FileArgument,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="A private Ed25519 key, PEM or OpenSSH.")],
    as_json: JsonOption = False,
) -> None:
    """Sign a file's manifest, and with it every member, and print the file's path.

    `ssh-keygen -t ed25519 -N '' -f k.pem` makes a pair of keys; so does openssl. Keys with a password are not read.
    """
    from synthe_core.packing.sign import sign

    with choose_renderer(as_json) as shown:
        for result in results(sign(file.expanduser(), key.expanduser()), shown.show):
            shown.result(result)


@app.command(
    cls=Command,
    short_help="In what two files differ.",
    epilog="""\
synthe pack diff old.synapse new.synapse
synthe pack diff runs/60m synthe-60m.synapse --json | jq .values.tensors""",
)
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="A .synapse file or a checkpoint.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="Another.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two models: recipes key by key, members by digest, weights tensor by tensor."""
    from synthe_core.packing.diff import diff

    with choose_renderer(as_json) as shown:
        for result in results(diff(one.expanduser(), other.expanduser()), shown.show):
            if as_json:
                shown.result(result)
                continue
            shown.close()
            print(differences(result.values))


@app.command(
    cls=Command,
    short_help="The JSON Schema of the manifest.",
    epilog="""\
synthe pack schema
synthe pack schema > synapse-manifest.schema.json""",
)
def schema() -> None:
    """Print the JSON Schema of manifest.json, the manifest of a .synapse file."""
    from synthe_core.packing.manifest import PackManifest

    dialect = "https://json-schema.org/draft/2020-12/schema"
    print(json.dumps({"$schema": dialect, **PackManifest.model_json_schema()}, indent=2))
