"""`synthe bench zoology`: every learner on every task."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    without_none,
)
from synthe_cli.options import DeviceOption, JsonOption, find_recipe
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import WorkError
from synthe_core.events import Result, results
from synthe_core.storage.atomic import write_file

EXAMPLES = """\
synthe bench zoology --core --jobs 2                       six tasks that separate learners well, every learner
synthe bench zoology --layer delta --layer mamba2          all tasks, two learners
synthe bench zoology --task parity --task stack --seeds 3  two tasks, every learner
synthe bench zoology --launcher slurm --jobs 64            on a cluster"""


def zoology(
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only this task. Default: all tasks. Repeatable.")
    ] = None,
    core: Annotated[bool, typer.Option("--core", help="Only the six most informative tasks.")] = False,
    layer: LayerOption = None,
    recipe: RecipeOption = None,
    preset: PresetOption = None,
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
        Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the trials and report.html.")
    ] = Path("runs/bench/zoology"),
    csv_file: CsvOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train and test every learner on every task, and write one table and one report.

    Without --layer and --recipe it runs all causal learners. Every finished trial is saved: the same command resumes
    where it stopped, and a command with more trials runs only the new ones.
    """
    from synthe_core.benchmarks.synthetic import plan, report
    from synthe_core.benchmarks.synthetic.sweep import sweep as verb

    place, size = device_and_preset(device, preset, launcher)
    trials = plan.suite(
        [*(plan.CORE if core else []), *(task or [])],
        layers=layer or ([] if recipe else plan.causal_learners()),
        recipes=[find_recipe(each) for each in recipe or []],
        preset=size,
        swept=plan.parse_sweep(sweep or []),
        seeds=seeds,
        **without_none(lr=lr, width=width, blocks=blocks, epochs=epochs, steps=steps),
    )
    check_writable(csv_file)
    with choose_renderer(as_json) as shown, stop_on_signal("finished trials are saved") as stop:
        events = verb(trials, out=out, jobs=jobs, device=place, launcher=launcher, stop=stop)
        for result in results(events, shown.show):
            shown.close()
            records = list(result.values["trials"])  # type: ignore[call-overload]
            if csv_file is not None:
                write_file(csv_file, report.csv_text(records))
            if records and not as_json:
                from synthe_cli.bench_table import show_overview

                show_overview(report.summaries(records))
            if records:
                shown.result(Result(result.values if as_json else {}, report.write(records, out)[0]))
            if len(records) < len(trials):
                raise WorkError(f"{len(trials) - len(records)} of {len(trials)} trials failed", "see the lines above")
