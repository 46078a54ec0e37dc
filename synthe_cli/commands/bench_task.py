"""`synthe bench TASK`: train and test learners on a synthetic task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import console
from synthe_cli.commands.bench_options import (
    BlocksOption,
    CsvOption,
    EpochsOption,
    JobsOption,
    LauncherOption,
    LayerOption,
    LrOption,
    PresetOption,
    RecipeOption,
    SeedsOption,
    StepsOption,
    SweepOption,
    WidthOption,
    check_writable,
    device_and_preset,
    settings,
    without_none,
)
from synthe_cli.options import DeviceOption, JsonOption, find_recipe
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import InputError, WorkError, unknown
from synthe_core.events import Notice, Result, results
from synthe_core.storage.atomic import write_file

if TYPE_CHECKING:
    from synthe_core.benchmarks.synthetic.trial import Trial

EXAMPLES = """\
synthe bench mqar --layer delta                                    about a minute; accuracy by number of pairs
synthe bench mqar --layer delta --layer mamba --layer attention --seeds 3 --sweep lr=1e-3,3e-3 --plot
synthe bench parity --layer delta --set learner.beta_range=[0,2]   a key of the learner
synthe bench state-tracking --layer delta --group S3               a key of the task
synthe bench mqar --layer conv,attention --width 128               a hybrid of two learners
synthe bench mqar --layer delta --json --fail-under 0.95           for CI: exit 1 below
synthe bench mqar --recipe my.yaml --preset zoology                the published protocol"""


def bench_task(
    ctx: typer.Context,
    layer: LayerOption = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
    assign: Annotated[
        list[str] | None,
        typer.Option(
            "--set", "-s", metavar="KEY=VALUE", help="Set learner.KEY or task.KEY, as learner.heads=4. Repeatable."
        ),
    ] = None,
    sweep: SweepOption = None,
    seeds: SeedsOption = 1,
    lr: LrOption = None,
    width: WidthOption = None,
    blocks: BlocksOption = None,
    epochs: EpochsOption = None,
    steps: StepsOption = None,
    jobs: JobsOption = None,
    launcher: LauncherOption = "local",
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="DIR", help="Folder for the trials. Default: runs/bench/TASK.")
    ] = None,
    csv_file: CsvOption = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw accuracy in the terminal and in DIR/report.html.")] = False,
    fail_under: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1, help="Exit with 1 if a model's accuracy is below X."),
    ] = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small model from scratch on a task and test it on every slice, compared with chance.

    Further options are keys of the task: --pairs 8, --group S3. `synthe bench list` describes the tasks. Finished
    trials are saved; the same command runs only the missing ones.
    """
    task = str(ctx.info_name)

    from synthe_core.benchmarks.synthetic import plan
    from synthe_core.benchmarks.synthetic.sweep import sweep as verb

    learner, chosen = settings(assign)
    place, size = device_and_preset(device, preset, launcher)
    trials = plan.trials(
        task,
        layers=layer or ([] if recipe else ["delta"]),
        recipes=[find_recipe(each) for each in recipe or []],
        preset=size,
        settings=chosen | _keys(ctx, task),
        learner=learner,
        swept=plan.parse_sweep(sweep or []),
        seeds=seeds,
        **without_none(lr=lr, width=width, blocks=blocks, epochs=epochs, steps=steps),
    )
    folder = out or Path("runs") / "bench" / task
    check_writable(csv_file)
    with choose_renderer(as_json) as shown, stop_on_signal("finished trials are saved") as stop:
        events = verb(trials, out=folder, jobs=jobs, device=place, launcher=launcher, stop=stop)
        for result in results(events, shown.show):
            shown.close()
            finish(result, trials, folder, shown=shown, as_json=as_json, csv_file=csv_file, plot=plot)
            check(result, fail_under)


def _keys(ctx: typer.Context, task: str) -> dict[str, Any]:
    """`--pairs 8 --group=S3` as {"pairs": 8, "group": "S3"}. Raises InputError for an unknown key."""
    from synthe_core.benchmarks.synthetic.plan import parse_assignments
    from synthe_core.tasks import TASKS

    options = [option for parameter in ctx.command.params for option in parameter.opts if option.startswith("--")]
    known = [f"--{key.replace('_', '-')}" for key in TASKS[task].Config.model_fields if key != "type"]
    assignments, rest = [], list(ctx.args)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise InputError(f"unexpected argument '{word}'", "give a key of the task as --key value")
        key, equals, value = word[2:].partition("=")
        if f"--{key.replace('_', '-')}" not in known:
            raise unknown("option", f"--{key}", [*known, *options])
        if not equals:
            if not rest:
                raise InputError(f"{word} needs a value")
            value = rest.pop(0)
        assignments.append(f"{key.replace('-', '_')}={value}")
    return parse_assignments(assignments, "")


def finish(
    event: Result,
    trials: list[Trial],
    folder: Path,
    *,
    shown: console.Renderer,
    as_json: bool,
    csv_file: Path | None,
    plot: bool,
) -> None:
    """Prints the table and writes the requested files. Raises WorkError if trials failed."""
    from synthe_core.benchmarks.synthetic import report

    records: Any = event.values["trials"]
    if csv_file is not None:
        write_file(csv_file, report.csv_text(records))
    page = report.write(records, folder)[0] if plot and records else None
    if as_json:
        shown.result(event)
    elif records:
        from synthe_cli.bench_table import show

        show(report.summaries(records), plot)
        if page is not None:
            shown.show(Notice(f"charts: {page}"))
    if len(records) < len(trials):
        raise WorkError(f"{len(trials) - len(records)} of {len(trials)} trials failed", "see the lines above")


def check(event: Result, fail_under: float | None) -> None:
    """Raises WorkError if a model's accuracy (best setting, mean over seeds) is below --fail-under."""
    if fail_under is None:
        return
    from synthe_core.benchmarks.synthetic import report

    best = report.best(report.summaries(event.values["trials"]))  # type: ignore[arg-type]
    for each in best:
        if each.mean < fail_under:
            raise WorkError(f"{each.name} on {each.task}: accuracy {each.mean:.3f} is below {fail_under:g}")
