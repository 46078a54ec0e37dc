"""Training on several machines: through torchrun on each of them, or as a job of Slurm."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from synthe_core.errors import InputError, WorkError
from synthe_core.events import Event, Notice
from synthe_core.training.distributed.launch import RESTARTS
from synthe_core.training.distributed.start import RESTARTS as RESTARTED

LOGS = Path("runs") / "slurm"
"""Where jobs of Slurm write what they print, and their scripts are."""
FIRST_PORT, PORTS = 20_000, 40_000
NOTICE = 120
"""Seconds before the end of a job in which it saves."""


def torchrun_command(
    arguments: Sequence[str], nodes: int, processes: int, rendezvous: str | None, restarts: int = RESTARTS
) -> list[str]:
    """The command that runs `synthe ARGUMENTS` in `processes` processes of this machine, one of `nodes`.

    rendezvous: HOST:PORT of one of the machines, the same on all. InputError if several machines have none.
    """
    if nodes > 1 and rendezvous is None:
        raise InputError(
            f"{nodes} machines need an address to meet at",
            "--rendezvous HOST:PORT, the same on all of them: any of them, and a free port",
        )
    if rendezvous is None:
        place = ["--standalone"]
    else:
        place = ["--rdzv-backend", "c10d", "--rdzv-endpoint", rendezvous, "--rdzv-id", "synthe"]
    sizes = ["--nnodes", str(nodes), "--nproc-per-node", str(processes), "--max-restarts", str(restarts)]
    return [sys.executable, "-m", "torch.distributed.run", *place, *sizes, "-m", "synthe_cli", *arguments]


class SlurmJob:
    """What a job of Slurm runs, once on each of its machines: torchrun, which meets at the first of them.

    Before the time is up, or where the job is preempted, it saves; the job is then queued again, and goes on.
    """

    def __init__(self, arguments: Sequence[str], nodes: int, processes: int, again: bool = False) -> None:
        self.arguments, self.nodes, self.processes, self.again = list(arguments), nodes, processes, again
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self) -> None:
        """Raises WorkError if training fails: the reason is in the job's log."""
        from submitit import JobEnvironment

        environment = JobEnvironment()
        port = FIRST_PORT + int(str(environment.job_id).split("_")[0]) % PORTS
        place = f"{environment.hostnames[0]}:{port}"
        command = torchrun_command(self.arguments, self.nodes, self.processes, place)
        variables = {**os.environ, **({RESTARTED: "1"} if self.again else {})}
        self._process = subprocess.Popen(command, env=variables)
        if code := self._process.wait():
            raise WorkError(f"training ended with exit code {code}")

    def checkpoint(self, *_: Any, **__: Any) -> Any:
        """Saves, and returns what the job runs when it is queued again. Called by submitit."""
        from submitit.helpers import DelayedSubmission

        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=NOTICE)
        return DelayedSubmission(SlurmJob(self.arguments, self.nodes, self.processes, again=True))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process": None}


def submit(arguments: Sequence[str], nodes: int, processes: int, options: Mapping[str, str]) -> Iterator[Event]:
    """Submits `synthe ARGUMENTS` as a job of Slurm on `nodes` machines, `processes` GPUs each.

    options: Slurm's own, as `partition` or `time` in minutes. Raises InputError for one that Slurm has not.
    """
    if find_spec("submitit") is None:
        raise InputError("--launcher slurm needs submitit, which is not installed", "pip install 'synthe[cluster]'")
    import submitit

    try:
        executor = submitit.SlurmExecutor(folder=LOGS / "%j")
        executor.update_parameters(
            nodes=nodes,
            ntasks_per_node=1,
            gpus_per_node=processes,
            signal_delay_s=NOTICE,
            job_name="synthe",
            **{name: int(value) if value.isdecimal() else value for name, value in options.items()},
        )
        job = executor.submit(SlurmJob(arguments, nodes, processes))
    except ValueError as error:
        raise InputError(f"Slurm's options: {' '.join(str(error).split())[:300]}", "see sbatch --help") from error
    except (RuntimeError, FileNotFoundError, submitit.core.utils.FailedJobError) as error:
        raise WorkError(f"Slurm took no job: {' '.join(str(error).split())[:300]}", "is sbatch here?") from error
    yield Notice(f"job {job.job_id} of {nodes} x {processes} processes; its log is {job.paths.stdout}")
