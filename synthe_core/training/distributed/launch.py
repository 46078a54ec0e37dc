"""Starting the processes of one machine, through torch's elastic agent, and starting them again after a loss."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence

from synthe_core.events import Event, Notice
from synthe_core.training.distributed.start import RESTARTS as RESTARTED

RESTARTS = 3
"""How often processes that were killed are started again."""
STOPPED = 130
SHORT_OF_MEMORY = 75
"""The exit code of a process that may start again with a smaller micro-batch: EX_TEMPFAIL."""


def launch(arguments: Sequence[str], processes: int, restarts: int = RESTARTS) -> Iterator[Event]:
    """Runs `synthe ARGUMENTS` in `processes` processes of this machine, and exits with their code.

    Processes of which one ends by a signal or runs out of memory are started again together, at most `restarts` times:
    they go on from the newest checkpoint, with a smaller micro-batch where it was memory. They have torchrun's
    environment, and find each other through a free port.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # rank 0 says what failed
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    for attempt in range(restarts + 1):
        os.environ[RESTARTED] = str(attempt)
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=secrets.token_hex(8),
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            metrics_cfg={},
        )
        try:
            elastic_launch(config, sys.executable)("-m", "synthe_cli", *arguments)
            return
        except SignalException:
            raise SystemExit(STOPPED) from None
        except ChildFailedError as error:
            codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        reason = _again(codes)
        if reason is None or attempt == restarts:
            code = next((code for code in codes.values() if code > 0), 1)
            raise SystemExit(1 if code == SHORT_OF_MEMORY else code)
        yield Notice(f"{reason}: all start again from the newest checkpoint ({attempt + 1} of {restarts})", "warning")


def _again(codes: Mapping[int, int]) -> str | None:
    """Why processes that have ended with these codes start again; None where that would not help."""
    for rank, code in sorted(codes.items()):
        if code < 0 and -code != signal.SIGTERM:  # which the agent sends to the others
            return f"process {rank} was ended by signal {-code}"
    return "memory ran out" if SHORT_OF_MEMORY in codes.values() else None
