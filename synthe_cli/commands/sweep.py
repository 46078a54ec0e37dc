"""`synthe sweep`: a grid of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.commands.sweep_options import LAUNCHERS, RunLauncherOption, RunsAtOnceOption, SlurmOption
from synthe_cli.escape import printable
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import DataOption, JsonOption, SetOption, complete_recipe, find_recipe, overrides
from synthe_cli.processes import pairs
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError, WorkError, unknown
from synthe_core.events import Result, results
from synthe_core.units import format_count

app = typer.Typer(**SETTINGS)

METRICS = ("loss", "bits_per_byte", "perplexity", "accuracy")


@app.command(
    cls=Command,
    epilog="""\
synthe sweep recipes/tiny.yaml --over train.lr=1e-3,2e-3 --over model.width=128,192 --jobs 2
synthe sweep tiny --over seed=0,1,2 --set train.budget=2Mtokens      the same run from three seeds
synthe sweep baselines/mamba2 baselines/transformer --over train.lr=2e-3,4e-3     two recipes
synthe sweep tiny --over train.lr=1e-3,2e-3 --launcher slurm --slurm partition=gpu,time=600
synthe sweep tiny --over train.lr=1e-3,2e-3 --json | jq -c 'select(.event == "measurement")'
""",
)
def sweep(
    recipe: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE...",
            help="Recipe files, shipped recipes or run folders.",
            autocompletion=complete_recipe,
        ),
    ],
    over: Annotated[
        list[str] | None,
        typer.Option(
            "--over",
            metavar="KEY=VALUE,...",
            help="Train with each of these values of a key. Of several keys, with every combination. Repeatable.",
        ),
    ] = None,
    data: DataOption = None,
    assign: SetOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            help="The folder of the sweep, new or to go on with. Default: runs/sweep-NAME.",
        ),
    ] = None,
    jobs: RunsAtOnceOption = None,
    launcher: RunLauncherOption = "local",
    slurm: SlurmOption = None,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            metavar="NAME",
            help="What ranks the runs: loss, bits_per_byte, perplexity or accuracy, of the last validation.",
            autocompletion=lambda: list(METRICS),
        ),
    ] = "loss",
    as_json: JsonOption = False,
) -> None:
    """Train a grid of recipes, several runs at a time, and rank them. Prints the path of the best run.

    Ctrl-C saves all runs and stops. The same command goes on: finished runs are not trained again. A run that fails
    does not stop the others; the exit code is then 1.
    """
    if metric not in METRICS:
        raise unknown("metric", metric, METRICS)
    if launcher not in LAUNCHERS:
        raise unknown("launcher", launcher, LAUNCHERS)
    if slurm is not None and launcher != "slurm":
        raise InputError("--slurm needs --launcher slurm")
    if not over and len(recipe) == 1:
        raise InputError("a sweep of one run", "give values of a key, as --over train.lr=1e-3,2e-3, or several recipes")
    named = [(_label(each), find_recipe(each)) for each in recipe]

    from synthe_core.sweep.grid import parse_axis, plan_runs

    runs = plan_runs(named, [parse_axis(each) for each in over or []], overrides(data, assign))
    folder = out or Path("runs") / f"sweep-{runs[0].recipe.name}"
    run_sweep(runs, folder, jobs=jobs, launcher=launcher, slurm=slurm, metric=metric, as_json=as_json)


def run_sweep(
    runs: list[Any],
    folder: Path,
    *,
    jobs: int | None,
    launcher: str,
    slurm: str | None = None,
    metric: str = "loss",
    as_json: bool = False,
) -> Result:
    """Runs a sweep and shows it. WorkError at the end if runs have failed."""
    from synthe_core.sweep.run import sweep as verb

    result = Result()
    with choose_renderer(as_json) as shown, stop_on_signal("the runs save first") as stop:
        options = pairs(slurm or "")
        events = verb(runs, out=folder, jobs=jobs, launcher=launcher, options=options, metric=metric, stop=stop)
        for result in results(events, shown.show):
            shown.close()
            records: Any = result.values["runs"]
            if not as_json:
                print(printable(ranking(records)), flush=True)
                shown.result(Result(path=result.path))
            else:
                shown.result(result)
    if failed := [each["name"] for each in result.values["runs"] if each["status"] == "failed"]:  # type: ignore[attr-defined]
        raise WorkError(f"{len(failed)} of {len(runs)} runs failed: {', '.join(failed)}", f"see {folder / 'logs'}")
    return result


def ranking(records: list[dict[str, Any]]) -> str:
    """The table of the runs, in their order."""
    rows = []
    for place, each in enumerate(records, 1):
        values, finished = each["values"], each["status"] == "finished"
        rows.append(
            [
                str(place) if finished else "-",
                each["name"],
                "" if finished else each["status"],
                _number(values.get("loss"), "{:.4f}"),
                _number(values.get("bits_per_byte"), "{:.4f}"),
                _number(values.get("accuracy"), "{:.1%}"),
                _count(values.get("parameters")),
                _count(values.get("tokens")),
                figures.duration(values.get("seconds")),
            ]
        )
    heads = ["#", "run", "", "loss", "bits/byte", "accuracy", "parameters", "tokens", "time"]
    shown = [i for i in range(len(heads)) if i < 2 or any(row[i] not in ("", "-") for row in rows)]
    return figures.table([heads[i] for i in shown], [[row[i] for i in shown] for row in rows], left=2)


def _number(value: Any, form: str) -> str:
    return form.format(value) if isinstance(value, (int, float)) else ""


def _count(value: Any) -> str:
    return format_count(value) if isinstance(value, (int, float)) else ""


def _label(text: str) -> str:
    """A short name of a recipe: `mamba2` of recipes/baselines/mamba2.yaml."""
    path = Path(text)
    return path.stem if path.suffix in (".yaml", ".yml") else path.name
