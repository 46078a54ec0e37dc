"""Commands that several processes run together: one of them reports."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from synthe_cli.failures import report
from synthe_cli.renderer import choose_renderer
from synthe_core.errors import InputError, Interrupted, OutOfMemory, SyntheError, unknown

LAUNCHERS = ("local", "torchrun", "slurm")
SHORT_OF_MEMORY = 75
"""`training.distributed.launch.SHORT_OF_MEMORY`, without its imports."""
OPTIONS = ("--processes", "--gpus", "--nodes", "--launcher", "--rendezvous", "--slurm")
"""What says how processes are started; each has a value."""


class Launch(NamedTuple):
    """How processes are started: as many on each of some machines, by which launcher, and its options."""

    nodes: int
    processes: int
    launcher: str
    rendezvous: str | None = None
    slurm: str | None = None


def launch_processes(how: Launch, as_json: bool) -> None:
    """Runs the command of this process in several processes; of this machine, with their exit code."""
    if "WORLD_SIZE" in os.environ:
        raise InputError("torchrun has started the processes already", f"leave out {', '.join(OPTIONS)}")
    if how.launcher not in LAUNCHERS:
        raise unknown("launcher", how.launcher, LAUNCHERS)
    if how.launcher == "local" and how.nodes > 1:
        raise InputError(
            f"--launcher local starts processes of this machine, and --nodes is {how.nodes}",
            "--launcher slurm, or --launcher torchrun on every machine",
        )
    arguments = without_options(sys.argv[1:])
    from synthe_core.training.distributed.cluster import submit, torchrun_command
    from synthe_core.training.distributed.launch import launch

    if how.launcher == "torchrun":
        command = torchrun_command(arguments, how.nodes, how.processes, how.rendezvous)
        os.execv(command[0], command)
    with choose_renderer(as_json) as shown:
        if how.launcher == "slurm":
            events = submit(arguments, how.nodes, how.processes, pairs(how.slurm or ""))
        else:
            events = launch(arguments, how.processes)
        for event in events:
            shown.show(event)


def pairs(text: str) -> dict[str, str]:
    """`partition=gpu,time=600` as a dictionary."""
    pairs = [each.partition("=") for each in text.split(",") if each]
    for key, equals, _ in pairs:
        if not equals:
            raise InputError(f"--slurm: {key} has no value", "as in --slurm partition=gpu,time=600")
    return {key.strip().replace("-", "_"): value.strip() for key, _, value in pairs}


def without_options(arguments: list[str]) -> list[str]:
    """The arguments without those of `OPTIONS`, and their values."""
    rest: list[str] = []
    skip = False
    for each in arguments:
        if not skip and each.partition("=")[0] not in OPTIONS:
            rest.append(each)
        skip = not skip and each in OPTIONS
    return rest


@contextmanager
def rank_0_reports() -> Iterator[bool]:
    """Yields whether this process reports: rank 0, or one alone. Errors of the others set their exit code only."""
    leads = os.environ.get("RANK", "0") == "0"
    try:
        yield leads
    except KeyboardInterrupt as error:
        if leads:
            raise
        raise SystemExit(Interrupted.exit_code) from error
    except OutOfMemory as error:
        if leads:
            report(error)
        raise SystemExit(SHORT_OF_MEMORY) from error
    except SyntheError as error:
        if leads:
            raise
        raise SystemExit(error.exit_code) from error
    except Exception as error:
        if leads:
            raise
        raise SystemExit(1) from error


def report_and_exit(error: SyntheError) -> None:
    """Reports an error and ends the process at once, whatever it waits for."""
    code = report(error)
    sys.stderr.flush()
    os._exit(code)
