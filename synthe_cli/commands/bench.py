"""`synthe bench`: quality (a task by its name), speed and serving."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli.commands.bench_report import LIST_EXAMPLES, REPORT_EXAMPLES, list_tasks, report
from synthe_cli.commands.bench_serve import EXAMPLES as SERVE_EXAMPLES
from synthe_cli.commands.bench_serve import serve
from synthe_cli.commands.bench_suite import EXAMPLES as SUITE_EXAMPLES
from synthe_cli.commands.bench_suite import zoology
from synthe_cli.commands.bench_task import EXAMPLES, bench_task
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import DeviceOption, JsonOption, find_recipe
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import unknown

if TYPE_CHECKING:
    from synthe_core.events import Event

ABOUT = "Benchmark learners: quality (synthe bench TASK), speed and serving."


class BenchGroup(Group):
    """Every task of the table is a command too. Tasks are imported when called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        names = self.list_commands(ctx)
        if args and args[0] not in names and not args[0].startswith("-"):
            from synthe_core.tasks import TASKS

            if args[0] in TASKS:
                return args[0], self.get_command(ctx, "TASK"), args[1:]
            raise unknown("task", args[0], [*TASKS, *names])
        return super().resolve_command(ctx, args)


app = typer.Typer(cls=BenchGroup, help=ABOUT, **SETTINGS)
app.command(
    "TASK",
    cls=Command,
    short_help="Train and test a learner on a task, such as mqar or parity.",
    epilog=EXAMPLES,
    context_settings={**SETTINGS["context_settings"], "allow_extra_args": True, "ignore_unknown_options": True},
)(bench_task)
app.command(cls=Command, short_help="Run every learner on every task.", epilog=SUITE_EXAMPLES)(zoology)
app.command("list", cls=Command, short_help="List the tasks and their keys.", epilog=LIST_EXAMPLES)(list_tasks)
app.command("report", cls=Command, short_help="Write tables and charts of finished trials.", epilog=REPORT_EXAMPLES)(
    report
)
app.command(cls=Command, short_help="Load-test a server.", epilog=SERVE_EXAMPLES)(serve)

PARTS = ("ops", "learners", "training", "decoding", "published")
GROWTH = (512, 1024, 2048, 4096, 8192)
PAIRS = (("tiny", "baselines/transformer"), ("60m-flat", "baselines/transformer-60m"))


@app.callback(help=ABOUT)
def bench() -> None: ...


@app.command(
    cls=Command,
    short_help="Time operators, training and decoding.",
    epilog="""\
synthe bench speed                                       everything; takes minutes
synthe bench speed --part ops --op delta                 the delta rule against other implementations
synthe bench speed --part learners --learner mamba       time at 512 to 8,192 tokens, and state size
synthe bench speed --part training --recipe tiny --recipe baselines/mamba
synthe bench speed --part training --json > speed.jsonl  tiny and 60m-flat against transformers of equal size""",
)
def speed(
    part: Annotated[
        list[str] | None, typer.Option(help="ops, learners, training, decoding or published. Repeatable.")
    ] = None,
    op: Annotated[list[str] | None, typer.Option(help="delta, momentum or kalman. Repeatable.")] = None,
    learner: Annotated[list[str] | None, typer.Option(help="Learner for the part `learners`. Repeatable.")] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RECIPE", help="Compare these recipes with the first, in training and decoding. Repeatable."
        ),
    ] = None,
    against: Annotated[
        str, typer.Option(help="Other implementations of the operators: transformers, fla, sdpa, reference.")
    ] = ("transformers,fla,sdpa,reference"),
    turns: Annotated[int, typer.Option(min=1, help="Timed runs per candidate, in alternation.")] = 7,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Time operators, training steps and decoding. Candidates alternate in one process, and medians are reported.

    A ratio is a candidate's time divided by the first candidate's, computed per run, so that drift of the machine's
    speed cancels. Each case reports its shapes and throughput.
    """
    with choose_renderer(as_json) as renderer:
        for event in _measure(
            part or list(PARTS), op, learner, recipe, tuple(against.split(",")), turns, device or "auto"
        ):
            renderer.show(event)


def _measure(
    parts: list[str],
    ops: list[str] | None,
    chosen: list[str] | None,
    recipes: list[str] | None,
    against: tuple[str, ...],
    turns: int,
    device: str,
) -> Iterator[Event]:
    from synthe_core.benchmarks import learners, models, operators
    from synthe_core.errors import unknown
    from synthe_core.hardware.placement import choose_device
    from synthe_core.hardware.probe import probe
    from synthe_core.recipe.schema import Recipe

    for part in parts:
        if part not in PARTS:
            raise unknown("part", part, PARTS)
    operators.check(ops or (), against)
    device = choose_device(device, probe()).value
    if "published" in parts:  # first, while the process uses little memory
        sixty = find_recipe("60m-flat")
        both = {f"60m-flat, {name}": Recipe.load(sixty, [f"train.optimizer={name}"]) for name in ("adamw", "muon")}
        yield from models.published_shapes(both, turns, device)
    if "ops" in parts:
        for name in ops or list(operators.CASES):
            yield from operators.measure(name, against, device, turns)
    if "learners" in parts:
        yield from learners.growth(GROWTH, 256, turns, device, chosen)
    groups = [tuple(recipes)] if recipes else PAIRS
    pairs = [{name: Recipe.load(find_recipe(name)) for name in group} for group in groups]
    for pair in pairs:
        if "training" in parts:
            yield from models.training(pair, (512, 2048), 4096, turns, device)
        if "decoding" in parts:
            # The large transformer is left out: its prefill of 32,768 tokens takes many minutes on a CPU.
            small_enough = {name: recipe for name, recipe in pair.items() if name != PAIRS[1][1]}
            yield from models.decoding(small_enough, (1024, 32768), turns, device)
