"""`synthe profile-vram`: the memory a recipe needs, the cards it fits, and a measurement of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.profile_mesh import profile_mesh, with_mesh
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import (
    DeviceOption,
    JsonOption,
    LoraOption,
    ModelOrRecipeArgument,
    SetOption,
    find_recipe_or_model,
    lora,
    overrides,
)
from synthe_core.errors import InputError
from synthe_core.units import format_size

if TYPE_CHECKING:
    from synthe_core.hardware.probe import Hardware
    from synthe_core.profiling.fit import Fit
    from synthe_core.profiling.footprint import Footprint
    from synthe_core.recipe.schema import Recipe
    from synthe_core.storage.checkpoint import Checkpoint

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe profile-vram recipes/350m.yaml --batch 8 --context 2048        memory by part, and the cards it fits
synthe profile-vram 60m --gpu 8GiB --train                            does training fit in 8 GiB?
synthe profile-vram tiny --batch 8 --measure                          predicted and measured peak of a step
synthe profile-vram --fit 60m --gpu "RTX 4090"                        the flags that make it fit
synthe profile-vram 60m --serve --html memory.html                    memory by context, compared with a transformer
synthe profile-vram runs/60m --lora rank=16,quantize=nf4            QLoRA: an adapter over quantised matrices
synthe profile-vram 1.3b --mesh replicate=1,shard=8                   one of eight processes with a shard each
synthe profile-vram 60m --json | jq .training.peak""",
)
def profile_vram(
    recipe: ModelOrRecipeArgument,
    batch: Annotated[
        int | None,
        typer.Option("--batch", "-b", min=1, metavar="N", help="Sequences per pass. Default: the recipe's batch."),
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", "-c", min=2, metavar="N", help="Tokens per sequence.")
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option("--gpu", metavar="CARD", help="Check whether it fits this card: 8GiB, H200, 'RTX 4090'."),
    ] = None,
    train: Annotated[bool, typer.Option("--train", help="Training only.")] = False,
    serve: Annotated[bool, typer.Option("--serve", help="Serving only.")] = False,
    fits: Annotated[bool, typer.Option("--fit", help="Find settings that fit, and print their flags.")] = False,
    measure: Annotated[bool, typer.Option("--measure", help="Run a real step and compare its peak.")] = False,
    snapshot: Annotated[
        Path | None,
        typer.Option("--snapshot", metavar="FILE", help="With --measure on CUDA: write torch's memory history."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write a page with a chart of memory by context.")
    ] = None,
    mesh: Annotated[
        str | None,
        typer.Option(
            "--mesh", metavar="KEY=N,...", help="One of several processes: replicate=1,shard=4; also sequence=N."
        ),
    ] = None,
    adapter: LoraOption = None,
    assign: SetOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Estimate the memory of training and serving a recipe, without running it in full.

    Parameters, gradients, optimizer and state are counted on a model without storage. Activations are measured in small
    passes on this machine (one and two blocks, one and two rows) and extrapolated linearly. Kernels of another device
    may keep a little more or less.
    """
    from synthe_core.hardware.probe import probe
    from synthe_core.profiling.footprint import Estimate
    from synthe_core.storage.checkpoint import Checkpoint
    from synthe_core.storage.checkpoint.recipe import load_recipe

    if snapshot and not measure:
        raise InputError("--snapshot needs --measure", "add --measure")
    for path in filter(None, (html, snapshot)):
        if not path.absolute().parent.is_dir():
            raise InputError(f"no such folder: {path.parent}", "create it first")
    changes = [f"data.sequence={context}"] if context else []
    changes += [f"runtime.device={device}"] if device else []
    changes += [lora(adapter)] if adapter else []
    path = find_recipe_or_model(recipe)
    loaded = load_recipe(path, overrides(None, [*changes, *(assign or [])]))
    base = None if loaded.train.lora is None or path.suffix in (".yaml", ".yml") else Checkpoint.open(path)
    machine = probe()
    if mesh:
        _check_mesh(serve, fits, html, loaded, path)
        profile_mesh(with_mesh(loaded, mesh), machine, batch, measure, as_json)
        return
    room = _room(gpu, machine, loaded)
    if fits:
        _fit(loaded, machine, room, gpu, measure, as_json, base)
        return
    estimate = Estimate(loaded, machine, base)
    footprints: dict[str, Footprint] = {}
    if train or not serve:
        micro_batch = loaded.train.micro_batch
        rows = batch or (micro_batch if isinstance(micro_batch, int) else loaded.train.batch)
        footprints["training"] = estimate.training(rows)
    if serve or not train:
        footprints["serving"] = estimate.serving(batch or 1)
    truth = {name: _measured(loaded, each, snapshot, base) for name, each in footprints.items()} if measure else {}
    if as_json:
        state = estimate.model.state_bytes(loaded.data.sequence) if loaded.model.head is None else 0
        values = {name: _plain(each, truth.get(name)) for name, each in footprints.items()}
        print(json.dumps({"recipe": loaded.name, "state_bytes": state, "room": room, **values}))
    else:
        for name, each in footprints.items():
            print(_shown(loaded, each, truth.get(name) if measure else None, measure))
        print(_cards(footprints, room, gpu))
    if html is not None:
        _draw(html, loaded, footprints, batch or 1)
        if not as_json:
            print(html)


def _check_mesh(serve: bool, fits: bool, html: Path | None, recipe: Recipe, path: Path) -> None:
    for name, given in (("--serve", serve), ("--fit", fits), ("--html", html is not None)):
        if given:
            raise InputError(f"--mesh is of training, and {name} is not", f"leave out {name} or --mesh")
    if recipe.train.lora is not None or path.suffix not in (".yaml", ".yml"):
        raise InputError("--mesh estimates recipes of whole models", "leave out --lora, and name a recipe")


def _room(gpu: str | None, machine: Hardware, recipe: Recipe) -> int:
    from synthe_core.hardware.placement import choose_device
    from synthe_core.profiling.cards import card_memory, usable_bytes, usable_on

    if gpu:
        return usable_bytes(card_memory(gpu))
    return usable_on(machine, choose_device(recipe.runtime.device, machine).value)


def _measured(
    recipe: Recipe, footprint: Footprint, snapshot: Path | None = None, base: Checkpoint | None = None
) -> int | None:
    from synthe_core.profiling.measure import measure_step

    train = footprint.purpose == "training"
    kind = {"rows": footprint.rows, "length": footprint.length, "precision": footprint.precision}
    model = base.path if train and base is not None else None
    return measure_step(recipe, train=train, snapshot=snapshot if train else None, model=model, **kind)  # type: ignore[arg-type]


def _plain(footprint: Footprint, truth: int | None) -> dict[str, Any]:
    values = {
        "rows": footprint.rows,
        "length": footprint.length,
        "precision": footprint.precision,
        "peak": round(footprint.peak),
    }
    parts = {name: round(size) for name, size in footprint.parts.items()}
    measured = {} if truth is None else {"measured": truth, "error": footprint.peak / truth - 1}
    return {**values, "parts": parts, "activations_by_learner": footprint.by_learner, **measured}


def _shown(recipe: Recipe, footprint: Footprint, truth: int | None, measure: bool) -> str:
    what = "sequences per pass" if footprint.purpose == "training" else "sequences"
    shape = f"{footprint.rows} {what} of {footprint.length:,} tokens, {footprint.precision}"
    head = f"{recipe.name}, {footprint.purpose}: {shape}"
    rows = [
        [f"  {name}", format_size(size), f"{size / footprint.peak:.0%}"]
        for name, size in footprint.parts.items()
        if size
    ]
    rows.append(["  peak", format_size(footprint.peak), ""])
    lines = [head, figures.table(["", "", ""], rows).partition("\n")[2]]
    activations = sum(footprint.by_learner.values())
    if activations:
        shares = [
            f"{name} {size / activations:.0%}"
            for name, size in sorted(footprint.by_learner.items(), key=lambda e: -e[1])
        ]
        lines.append(f"  activations activations for backward, per block: {', '.join(shares)}")
    if measure:
        if truth is None:
            lines.append("  measured: not available on this system")
        else:
            lines.append(f"  measured {format_size(truth)}: prediction is off by {footprint.peak / truth - 1:+.1%}")
    return "\n".join(lines) + "\n"


def _cards(footprints: dict[str, Footprint], room: int, gpu: str | None) -> str:
    """What share of memory it takes: of --gpu, or of this machine and every known card."""
    from synthe_core.profiling.cards import CARDS, usable_bytes

    def verdicts(space: float) -> list[str]:
        return [_share(each.peak / space) if each.peak <= space else "no" for each in footprints.values()]

    if gpu:
        rows = [[gpu, format_size(room), *verdicts(room)]]
    else:
        rows = [["this machine", format_size(room), *verdicts(room)]]
        sizes = {name: usable_bytes(size << 20) for name, size in CARDS.items()}
        rows += [[name, format_size(size), *verdicts(size)] for name, size in sizes.items()]
    return figures.table(["share of", "usable", *footprints], rows)


def _share(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "<1%"


def _fit(
    recipe: Recipe,
    machine: Hardware,
    room: int,
    gpu: str | None,
    measure: bool,
    as_json: bool,
    base: Checkpoint | None,
) -> None:
    from synthe_core.profiling.fit import fit
    from synthe_core.profiling.footprint import Estimate

    known: dict[str, Estimate] = {}

    def training_footprint(changed: Recipe, rows: int) -> Footprint:
        key = changed.digest()
        if key not in known:
            known[key] = Estimate(changed, machine, base)
        return known[key].training(rows)

    result = fit(recipe, room, training_footprint)
    truth = _measured(_changed(recipe, result), result.footprint, None, base) if measure else None
    if as_json:
        larger = None if result.next_larger is None else dict(zip(("rows", "peak"), result.next_larger, strict=True))
        print(
            json.dumps(
                {"set": result.changes, "room": room, "next_larger": larger, "tried": result.rejected}
                | _plain(result.footprint, truth)
            )
        )
        return
    print(_shown(recipe, result.footprint, truth, measure))
    for what, peak in result.rejected:
        print(f"does not fit {format_size(room)}: {what}, {format_size(peak)}")
    if result.next_larger:
        rows, peak = result.next_larger
        print(f"does not fit {format_size(room)}: {rows} sequences per pass, {format_size(peak)}")
    print(f"fits {gpu or 'this machine'}, which has {format_size(room)} for tensors:")
    print(result.flags)


def _changed(recipe: Recipe, result: Fit) -> Recipe:
    from synthe_core.recipe.schema import Recipe

    values = recipe.model_dump(mode="json")
    for key, value in result.changes.items():
        part, _, name = key.partition(".")
        values[part][name] = value
    return Recipe.model_validate(values)


def _draw(path: Path, recipe: Recipe, footprints: dict[str, Footprint], rows: int) -> None:
    from synthe_core.hardware.probe import probe
    from synthe_core.model.published_spec import PublishedSpec
    from synthe_core.profiling import chart
    from synthe_core.profiling.footprint import Estimate
    from synthe_core.storage.atomic import write_file

    if recipe.model.head is not None:
        raise InputError("an encoder has no state", "--html needs a language model")
    if isinstance(recipe.model, PublishedSpec):
        kind = recipe.model.architecture
        raise InputError(f"--html compares learners with a transformer, and {kind} has none", "leave out --html")
    other = chart.matched_transformer(recipe)
    charts = []
    if "serving" in footprints:
        many = "one sequence" if rows == 1 else f"{rows} sequences"
        curves = [chart.serving_curve(recipe, recipe.name, rows), chart.serving_curve(other, "transformer", rows)]
        charts.append((f"Serving {many}: weights and state", curves))
    if "training" in footprints:
        lengths = [n for n in chart.CONTEXTS if n <= 16_384]
        each = []
        for name, recipe_of in ((recipe.name, recipe), ("transformer", other)):
            estimate = Estimate(recipe_of, probe())
            each.append(chart.Curve(name, [(n, estimate.training(1, n, 1).peak) for n in lengths]))
        charts.append(("Training, one sequence per pass", each))
    write_file(path, chart.page(f"{recipe.name} and a transformer with the same number of parameters", charts))
