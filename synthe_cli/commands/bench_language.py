"""`synthe bench language`: recipes of equal size on one text."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.bench_options import JobsOption, LauncherOption, SeedsOption, check_writable
from synthe_cli.options import DataOption, JsonOption, SetOption, find_recipe, overrides
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError, WorkError
from synthe_core.events import Result, results
from synthe_core.storage.atomic import write_file
from synthe_core.units import format_count, format_size

EXAMPLES = """\
synthe bench language --seeds 3 --jobs 2                           every recipe of the size of tiny
synthe bench language --recipe tiny --recipe baselines/mamba2      two recipes
synthe bench language --size 60m --tokens 50M --launcher slurm     larger ones, on a cluster
synthe bench language --data novels/ --set train.lr=2e-3           another text, another rate"""

SIZES = ("tiny", "60m")
OWN = {"tiny": ("tiny", "thl-tiny", "synapse-tiny"), "60m": ("60m-flat", "thl")}
COLUMNS = ("recipe", "bits/byte", "±", "seeds", "parameters", "state", "tokens")


def recipes_of(size: str) -> list[str]:
    """The shipped recipes of one size, which have one tokenizer and the same text."""
    names = sorted(path.stem for path in (find_recipe("tiny").parent / "baselines").glob("*.yaml"))
    large = [name for name in names if name.endswith("-60m")]
    return [*OWN[size], *(f"baselines/{name}" for name in names if (name in large) == (size == "60m"))]


def language(
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", metavar="RECIPE", help="Only this recipe. Default: all of a size. Repeatable."),
    ] = None,
    size: Annotated[str, typer.Option("--size", metavar="SIZE", help="Recipes of which size: tiny or 60m.")] = "tiny",
    tokens: Annotated[
        str, typer.Option("--tokens", metavar="N", help="Tokens that each run reads, as 800k or 50M.")
    ] = "800k",
    seeds: SeedsOption = 1,
    data: DataOption = None,
    assign: SetOption = None,
    jobs: JobsOption = None,
    launcher: LauncherOption = "local",
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the runs and the picture.")
    ] = Path("runs/bench/language"),
    csv_file: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write a table to this file.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train recipes of equal size on one text for as many tokens, and compare their bits per byte.

    A picture shows bits per byte against the bytes of a sequence's state. Finished runs are saved: the same command
    goes on where it stopped, and one with more seeds or recipes runs only the new ones.
    """
    if size not in SIZES:
        raise InputError(f"--size {size}: expected tiny or 60m")
    names = list(dict.fromkeys(recipe or recipes_of(size)))
    stems = [Path(each).stem for each in names]
    named = [(s if stems.count(s) == 1 else each, find_recipe(each)) for s, each in zip(stems, names, strict=True)]
    check_writable(csv_file)

    from synthe_core.benchmarks.language import language as verb
    from synthe_core.benchmarks.language import plan

    runs = plan(named, seeds=seeds, tokens=tokens, overrides=overrides(data, assign))
    with choose_renderer(as_json) as shown, stop_on_signal("the runs save first") as stop:
        for result in results(verb(runs, out=out, jobs=jobs, launcher=launcher, stop=stop), shown.show):
            shown.close()
            scores: Any = result.values["scores"]
            if csv_file is not None:
                write_file(csv_file, csv_text(scores))
            if not as_json and scores:
                print(table(scores), flush=True)
            shown.result(result if as_json else Result(path=result.path))
            if failed := result.values["failed"]:
                raise WorkError(f"{len(failed)} of {len(names) * seeds} runs failed", f"see {out / 'logs'}")  # type: ignore[arg-type]


def table(scores: list[dict[str, Any]]) -> str:
    """A row for each recipe, the best first."""
    rows = [
        [
            each["recipe"],
            f"{each['bits_per_byte']:.4f}",
            "" if each["std"] is None else f"{each['std']:.4f}",
            str(each["seeds"]),
            format_count(each["parameters"]),
            format_size(each["state_bytes"]),
            format_count(each["tokens"]),
        ]
        for each in scores
    ]
    return figures.table(list(COLUMNS), rows, left=1)


def csv_text(scores: list[dict[str, Any]]) -> str:
    """The scores as comma-separated values."""
    keys = ("recipe", "bits_per_byte", "std", "seeds", "parameters", "state_bytes", "tokens")
    lines = [",".join("" if each[key] is None else str(each[key]) for key in keys) for each in scores]
    return "\n".join([",".join(keys), *lines]) + "\n"
