"""A signal at a prompt interrupts it, also where CPython's `input()` would lose it."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.processes import Terminal, run_program, start

HOOK = """
#include <signal.h>
int hook(void) {
    static int calls;
    if (calls++ == 0) raise(SIGINT);
    return 0;
}
"""
LOST = """
import contextlib, ctypes, sys
from synthe_cli.signals import interruptible_input
hook = ctypes.CDLL(sys.argv[1]).hook
ctypes.c_void_p.in_dll(ctypes.pythonapi, "PyOS_InputHook").value = ctypes.cast(hook, ctypes.c_void_p).value
guard = interruptible_input if sys.argv[2] == "guarded" else contextlib.nullcontext
try:
    with guard():
        input("> ")
except KeyboardInterrupt:
    print("interrupted")
else:
    print("not interrupted")
"""


@pytest.fixture(scope="module")
def hook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library whose `hook` raises SIGINT after `input()` has checked for signals and before it waits."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler on this machine")
    folder = tmp_path_factory.mktemp("hook")
    (folder / "hook.c").write_text(HOOK)
    run_program([compiler, "-shared", "-fPIC", "-o", folder / "hook.so", folder / "hook.c"], check=True)
    return folder / "hook.so"


def test_a_signal_between_check_and_wait_interrupts(hook: Path) -> None:
    terminal = Terminal("-c", LOST, hook, "guarded")
    terminal.until("> ")
    terminal.until("interrupted", seconds=30)
    terminal.close()


def test_without_the_handler_the_signal_waits_for_the_next_key(hook: Path) -> None:
    terminal = Terminal("-c", LOST, hook, "bare")
    terminal.until("> ")
    with pytest.raises(AssertionError, match="no 'interrupted'"):
        terminal.until("interrupted", seconds=1)
    terminal.close()


def test_signals_interrupt_a_read_of_a_pipe() -> None:
    program = (
        "import signal, sys\n"
        "from synthe_cli.signals import interruptible_input\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "before = signal.getsignal(signal.SIGINT)\n"
        "try:\n"
        "    with interruptible_input():\n"
        "        print('ready', flush=True)\n"
        "        sys.stdin.readline()\n"
        "except KeyboardInterrupt: print('interrupted')\n"
        "assert signal.getsignal(signal.SIGINT) is before and signal.set_wakeup_fd(-1) == -1\n"
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        process = start(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.stdout.read() == "interrupted\n"
        assert process.wait(30) == 0
