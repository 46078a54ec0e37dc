"""How `synthe train` starts several processes."""

from __future__ import annotations

import sys

import pytest

from synthe_cli.processes import Launch, launch_processes, without_options
from synthe_core.errors import InputError
from synthe_core.training.distributed.cluster import SlurmJob, torchrun_command


def test_the_processes_get_the_command_without_what_starts_them() -> None:
    given = ["train", "tiny", "--processes", "2", "--set", "train.lr=1", "--nodes=3", "--launcher", "slurm", "--json"]
    assert without_options(given) == ["train", "tiny", "--set", "train.lr=1", "--json"]
    assert without_options(["train", "--gpus", "--nodes"]) == ["train"]  # a value that looks like an option


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Launch(2, 1, "local"), "--launcher local starts processes of this machine, and --nodes is 2"),
        (Launch(1, 2, "sulrm"), "unknown launcher 'sulrm'"),
        (Launch(2, 8, "torchrun"), "2 machines need an address to meet at"),
        (Launch(1, 2, "slurm", slurm="partition"), "--slurm: partition has no value"),
    ],
)
def test_bad_launches_are_refused(how: Launch, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["synthe", "train", "tiny"])
    with pytest.raises(InputError, match=message):
        launch_processes(how, as_json=True)


def test_processes_that_torchrun_started_start_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun has started the processes already"):
        launch_processes(Launch(1, 2, "local"), as_json=True)


def test_torchrun_starts_the_command_on_every_machine() -> None:
    alone = torchrun_command(["train", "tiny"], 1, 2, None)
    assert alone[1:4] == ["-m", "torch.distributed.run", "--standalone"]
    assert alone[-4:] == ["-m", "synthe_cli", "train", "tiny"]
    several = " ".join(torchrun_command(["train", "tiny"], 4, 8, "first:29500"))
    assert "--rdzv-endpoint first:29500" in several
    assert "--nnodes 4 --nproc-per-node 8" in several


def test_a_job_of_slurm_goes_on_when_it_is_queued_again() -> None:
    pytest.importorskip("submitit")
    again = SlurmJob(["train", "tiny"], 2, 8).checkpoint()
    assert again.function.again
    assert again.function.arguments == ["train", "tiny"]
