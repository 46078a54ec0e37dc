"""Commands that several processes run together: one of them reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from synthe_cli.renderer import choose_renderer
from synthe_core.errors import InputError, SyntheError

OPTION = "--processes"


def launch_processes(count: int, as_json: bool) -> None:
    """Runs the command of this process in `count` processes, and exits with their code."""
    if "WORLD_SIZE" in os.environ:
        raise InputError("torchrun has started the processes already", f"leave out {OPTION}")
    from synthe_core.training.distributed.launch import launch

    with choose_renderer(as_json) as shown:
        for event in launch(without_option(sys.argv[1:]), count):
            shown.show(event)


def without_option(arguments: list[str]) -> list[str]:
    """The arguments without --processes and its number."""
    rest: list[str] = []
    skip = False
    for each in arguments:
        if not skip and each != OPTION and not each.startswith(f"{OPTION}="):
            rest.append(each)
        skip = each == OPTION
    return rest


@contextmanager
def rank_0_reports() -> Iterator[bool]:
    """Yields whether this process reports: rank 0, or one alone. Errors of the others set their exit code only."""
    leads = os.environ.get("RANK", "0") == "0"
    try:
        yield leads
    except SyntheError as error:
        if leads:
            raise
        raise SystemExit(error.exit_code) from error
    except Exception as error:
        if leads:
            raise
        raise SystemExit(1) from error
