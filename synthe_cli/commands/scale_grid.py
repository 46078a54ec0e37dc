"""`synthe scale grid`: a grid of sizes and token counts, trained by a sweep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.scale_options import counts
from synthe_cli.commands.sweep import run_sweep
from synthe_cli.commands.sweep_options import RunLauncherOption, RunsAtOnceOption, SlurmOption
from synthe_cli.escape import json_text
from synthe_cli.options import DataOption, JsonOption, RecipeArgument, SetOption, find_recipe, overrides
from synthe_core.errors import InputError
from synthe_core.units import format_count

if TYPE_CHECKING:
    from synthe_core.scaling.rates import RateRule
    from synthe_core.sweep.grid import PlannedRun

EPILOG = """\
synthe scale grid recipes/tiny.yaml --learner delta --width 64,96,128 --tokens 1M,2M,4M --jobs 2
synthe scale grid tiny --learner delta --learner mamba2 --width 64,96,128 --flops 1e13,3e13,1e14
synthe scale grid tiny --width 96,192 --blocks 3,6 --tokens 1M,4M --dry-run    the recipe's own block, scaled
synthe scale grid tiny --learner delta --width 64,128 --tokens 1M --over train.lr=2e-3,4e-3,8e-3 --out runs/rates
synthe scale grid tiny --learner delta --width 64,96,128 --tokens 1M,2M,4M --rates runs/rates
"""


def grid(
    recipe: RecipeArgument,
    width: Annotated[str, typer.Option("--width", metavar="N,...", help="Widths of the models.")],
    blocks: Annotated[
        str | None, typer.Option("--blocks", metavar="N,...", help="Numbers of blocks. Default: the recipe's.")
    ] = None,
    tokens: Annotated[
        str | None, typer.Option("--tokens", metavar="COUNT,...", help="Tokens of training of every size, as 1M,2M,4M.")
    ] = None,
    flops: Annotated[
        str | None,
        typer.Option(
            "--flops", metavar="COUNT,...", help="FLOPs of training of every size instead, which IsoFLOP curves need."
        ),
    ] = None,
    learner: Annotated[
        list[str] | None,
        typer.Option(
            "--learner", metavar="NAME", help="Train blocks of this learner and an MLP. Default: the recipe's block."
        ),
    ] = None,
    head_size: Annotated[
        int, typer.Option("--head-size", metavar="N", min=1, help="Channels of a head of --learner.")
    ] = 32,
    rates: Annotated[
        str,
        typer.Option(
            "--rates",
            metavar="mup|constant|SWEEP",
            help="How the learning rate follows the width: mup from the recipe's, constant, or fitted to this sweep.",
        ),
    ] = "mup",
    over: Annotated[
        list[str] | None,
        typer.Option("--over", metavar="KEY=VALUE,...", help="Train with each of these values too. Repeatable."),
    ] = None,
    data: DataOption = None,
    assign: SetOption = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="DIR", help="The folder of the runs, new or to go on with.")
    ] = Path("runs/scale"),
    jobs: RunsAtOnceOption = None,
    launcher: RunLauncherOption = "local",
    slurm: SlurmOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the runs, their sizes and rates; train none.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Train models of several sizes on several amounts of text.

    It is a sweep: Ctrl-C saves, and the same command goes on. The learning rate follows the width by a rule that is
    shown first.
    """
    path = find_recipe(recipe)
    changes = overrides(data, assign)

    from synthe_core.scaling.grid import Grid, plan_grid
    from synthe_core.sweep.grid import parse_axis

    rule, described = _rule(rates, path, changes)
    sizes = Grid(
        _sizes(width, "--width"),
        _sizes(blocks, "--blocks") if blocks else [_blocks(path, changes)],
        [*counts(tokens or "", "--tokens")],
        [*counts(flops or "", "--flops")],
        learner or (),
        head_size,
    )
    runs = plan_grid(path, sizes, rule, changes, [parse_axis(each) for each in over or []])
    if dry_run:
        show(runs, described, as_json)
        return
    typer.echo("\n".join(described), err=True)
    run_sweep(runs, out, jobs=jobs, launcher=launcher, slurm=slurm, as_json=as_json)


def show(runs: list[PlannedRun], rules: list[str], as_json: bool) -> None:
    """Prints the runs of a grid."""
    from synthe_core.recipe.accounting import account
    from synthe_core.scaling.grid import cost

    rows = []
    for run in runs:
        train, size = run.recipe.train, account(run.recipe).parameters
        values: dict[str, Any] = {
            "run": run.name,
            "parameters": size,
            "tokens": int(train.budget.amount),
            "flops": cost(run),
        }
        if as_json:
            print(json_text({"event": "run", **values, "lr": train.lr}))
        rows.append([run.name, format_count(size), format_count(values["tokens"]), f"{cost(run):.2e}", f"{train.lr:g}"])
    if not as_json:
        total = sum(map(cost, runs))
        rows.append([f"{len(runs)} runs", "", "", f"{total:.2e}", ""])
        print("\n".join([*rules, figures.table(["run", "parameters", "tokens", "FLOPs", "lr"], rows)]))


def _rule(name: str, path: Path, changes: list[str]) -> tuple[Callable[[str], RateRule], list[str]]:
    """The rule of each learner, and the lines that state it."""
    from synthe_core.recipe.schema import Recipe
    from synthe_core.scaling.rates import fit_rules, transfer_rule
    from synthe_core.scaling.runs import read_trials

    if name in ("mup", "constant"):
        rule = transfer_rule(Recipe.load(path, changes), name)
        return lambda learner: rule, [str(rule)]
    if not Path(name).is_dir():
        raise InputError(f"--rates {name}: no such sweep", "give mup, constant, or the folder of a sweep over train.lr")
    rules = fit_rules(read_trials(Path(name)))

    def of(learner: str) -> RateRule:
        if learner not in rules:
            raise InputError(f"{name} has no runs of {learner}", f"it has {', '.join(sorted(rules))}")
        return rules[learner]

    return of, [f"{learner}: {rule}" for learner, rule in rules.items()]


def _blocks(path: Path, changes: list[str]) -> int:
    from synthe_core.recipe.schema import Recipe

    return Recipe.load(path, changes).model.blocks


def _sizes(text: str, option: str) -> list[int]:
    sizes = counts(text, option)
    if any(each != int(each) for each in sizes):
        raise InputError(f"{option} {text}: expected whole numbers")
    return [int(each) for each in sizes]
