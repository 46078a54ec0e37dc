"""`synthe pack`: one file with a model, its adapters, sessions, data and signature."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli.commands.pack_text import differences, overview
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.hub_models import find_model
from synthe_cli.options import CheckpointArgument, DataOption, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import closest, unknown
from synthe_core.events import Result, results
from synthe_core.units import format_size

ABOUT = (
    "Pack a model, its adapters and sessions into one file (synthe pack CHECKPOINT -o FILE), and inspect such files."
)
MAKE = "make"


class PackGroup(Group):
    """A first word that is not a command is a checkpoint to pack: `make` is implied."""

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
FileArgument = Annotated[Path, typer.Argument(metavar="FILE", help="A .synapse file, or an unpacked one.")]


@app.callback(help=ABOUT)
def _group() -> None: ...


@app.command(
    MAKE,
    cls=Command,
    short_help="Pack a checkpoint. You can leave out the word `make`.",
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
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="The file to write. Default: NAME.synapse.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="NAME=DIR", help="Adapter in PEFT's format. Repeatable."),
    ] = None,
    knowledge: Annotated[
        Path | None, typer.Option("--knowledge", metavar="FILE", help="SQLite database. It may be in use.")
    ] = None,
    session: Annotated[
        list[Path] | None,
        typer.Option("--session", metavar="FILE", help="Session written by `generate --state-out`. Repeatable."),
    ] = None,
    agent: Annotated[
        Path | None, typer.Option("--agent", metavar="FILE", help="agent.yaml, which defines the specialists.")
    ] = None,
    quantize: Annotated[
        str | None,
        typer.Option(
            "--quantize", "-q", metavar="KIND", help="Quantise the weights to int8 or int4, and measure the loss."
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Name of the model. Default: the recipe's name.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option("--license", metavar="ID", help="Licence of the model, as apache-2.0.")
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="ORG/NAME@REV", help="Do not include the weights; load them from this hub repository."
        ),
    ] = None,
    weights: Annotated[
        bool,
        typer.Option(
            "--weights/--no-weights",
            help="Include the weights. Without them, they are found by digest beside the file.",
        ),
    ] = True,
    data: DataOption = None,
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", min=1, metavar="N", help="Number of tokens to measure quantisation on.")
    ] = 16_384,
    as_json: JsonOption = False,
) -> None:
    """Pack a checkpoint and its adapters, sessions and data into one file, and print the file's path.

    Every command that takes a checkpoint takes the file; its weights are memory-mapped. The same inputs give the same
    bytes. Quantisation loss is measured on --data, by default the recipe's validation text.
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
    short_help="Show the contents of a file.",
    epilog="""\
synthe pack inspect synthe-60m.synapse
synthe pack inspect synthe-60m.synapse --json | jq .values.base.quantization
synthe pack inspect old-specialist.synapse             a folder of titan-synapse 0.2""",
)
def inspect(file: FileArgument, as_json: JsonOption = False) -> None:
    """Show the contents of a file: model, quantisation, adapters, knowledge, scores, digests and signature."""
    from synthe_core.packing.inspect import inspect

    with choose_renderer(as_json) as shown:
        for result in results(inspect(find_model(file)), shown.show):
            if as_json:
                shown.result(result)
            else:
                print(overview(result.values))


@app.command(
    cls=Command,
    short_help="Check the digests and the signature of a file.",
    epilog="""\
synthe pack verify synthe-60m.synapse
synthe pack verify synthe-60m.synapse --key k.pub       check that this key signed it
synthe pack verify synthe-60m.synapse --json""",
)
def verify(
    file: FileArgument,
    key: Annotated[
        Path | None, typer.Option("--key", metavar="FILE", help="Public Ed25519 key, PEM or OpenSSH.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Check the SHA-256 of every member of a file, and the signature if there is one.

    Prints the signer, `unsigned`, or the member that was changed. A signature proves that the holder of the key signed
    these bytes; use --key to require a key that you know.
    """
    from synthe_core.packing.verify import verify

    with choose_renderer(as_json) as shown:
        for result in results(verify(find_model(file), key), shown.show):
            if as_json:
                shown.result(result)
                continue
            shown.close()
            values = result.values
            who = f"signed by {values['signed by']}" if values["signed by"] else "unsigned"
            trust = f", as required by {key}" if key else ""
            print(f"{who}{trust}: {values['members']} members are unchanged")


@app.command(
    cls=Command,
    short_help="Sign a file with an Ed25519 key.",
    epilog="""\
synthe pack sign synthe-60m.synapse --key k.pem
synthe pack sign synthe-60m.synapse --key ~/.ssh/id_ed25519""",
)
def sign(
    file: FileArgument,
    key: Annotated[Path, typer.Option("--key", metavar="FILE", help="Private Ed25519 key, PEM or OpenSSH.")],
    as_json: JsonOption = False,
) -> None:
    """Sign a file's manifest, and with it every member, and print the file's path.

    Create a key pair with `ssh-keygen -t ed25519 -N '' -f k.pem` or openssl. Keys with a password are not supported.
    """
    from synthe_core.packing.sign import sign

    with choose_renderer(as_json) as shown:
        for result in results(sign(file.expanduser(), key.expanduser()), shown.show):
            shown.result(result)


@app.command(
    cls=Command,
    short_help="Show how two files differ.",
    epilog="""\
synthe pack diff old.synapse new.synapse
synthe pack diff runs/60m synthe-60m.synapse --json | jq .values.tensors""",
)
def diff(
    one: Annotated[Path, typer.Argument(metavar="A", help="A .synapse file or a checkpoint, or ORG/NAME of the hub.")],
    other: Annotated[Path, typer.Argument(metavar="B", help="The other one.")],
    as_json: JsonOption = False,
) -> None:
    """Compare two models: recipes by key, members by digest, weights by tensor."""
    from synthe_core.packing.diff import diff

    with choose_renderer(as_json) as shown:
        for result in results(diff(find_model(one), find_model(other)), shown.show):
            if as_json:
                shown.result(result)
                continue
            shown.close()
            print(differences(result.values))


@app.command(
    cls=Command,
    short_help="Print the JSON Schema of the manifest.",
    epilog="""\
synthe pack schema
synthe pack schema > synapse-manifest.schema.json""",
)
def schema() -> None:
    """Print the JSON Schema of manifest.json, the manifest of a .synapse file."""
    from synthe_core.packing.manifest import PackManifest

    dialect = "https://json-schema.org/draft/2020-12/schema"
    print(json.dumps({"$schema": dialect, **PackManifest.model_json_schema()}, indent=2))
