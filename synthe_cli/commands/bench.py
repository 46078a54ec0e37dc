"""`synthe bench`: quality (a task by its name), speed and serving."""

from __future__ import annotations

from typing import Any

import typer

from synthe_cli.commands.bench_language import EXAMPLES as LANGUAGE_EXAMPLES
from synthe_cli.commands.bench_language import language
from synthe_cli.commands.bench_report import LIST_EXAMPLES, REPORT_EXAMPLES, list_tasks, report
from synthe_cli.commands.bench_serve import EXAMPLES as SERVE_EXAMPLES
from synthe_cli.commands.bench_serve import serve
from synthe_cli.commands.bench_speed import EXAMPLES as SPEED_EXAMPLES
from synthe_cli.commands.bench_speed import speed
from synthe_cli.commands.bench_suite import EXAMPLES as SUITE_EXAMPLES
from synthe_cli.commands.bench_suite import zoology
from synthe_cli.commands.bench_task import EXAMPLES, bench_task
from synthe_cli.help import SETTINGS, Command, Group
from synthe_core.errors import unknown

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
app.command(cls=Command, short_help="Train recipes of equal size on one text.", epilog=LANGUAGE_EXAMPLES)(language)
app.command("list", cls=Command, short_help="List the tasks and their keys.", epilog=LIST_EXAMPLES)(list_tasks)
app.command("report", cls=Command, short_help="Write tables and charts of finished trials.", epilog=REPORT_EXAMPLES)(
    report
)
app.command(cls=Command, short_help="Load-test a server.", epilog=SERVE_EXAMPLES)(serve)
app.command(cls=Command, short_help="Time operators, training and decoding.", epilog=SPEED_EXAMPLES)(speed)


@app.callback(help=ABOUT)
def bench() -> None: ...
