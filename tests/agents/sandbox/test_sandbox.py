"""Programs that do nothing wrong, and what is said about those that fail."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from synthe_core.agents.sandbox import sandbox as module
from synthe_core.agents.sandbox.capture import Capture
from synthe_core.agents.sandbox.sandbox import Sandbox
from synthe_core.errors import InputError, WorkError


def test_output_and_exit_code(sandbox: Sandbox) -> None:
    execution = sandbox.run("import sys\nprint('größer')\nprint('bad', file=sys.stderr)\nsys.exit(3)")
    assert (execution.stdout, execution.stderr) == ("größer\n", "bad\n")
    assert (execution.ending, execution.code, execution.succeeded) == ("exit", 3, False)


def test_a_traceback_names_the_line(sandbox: Sandbox) -> None:
    execution = sandbox.run("x = 1\nprint(x / 0)")
    assert "line 2" in execution.stderr and execution.stderr.endswith("ZeroDivisionError: division by zero\n")


def test_a_signal(sandbox: Sandbox) -> None:
    execution = sandbox.run("import os\nos.kill(os.getpid(), 11)")
    assert (execution.ending, execution.code) == ("signal", 11)


def test_the_standard_library_works(sandbox: Sandbox) -> None:
    code = "import asyncio, decimal, json, multiprocessing, sqlite3, subprocess, tempfile, threading\n"
    code += "with tempfile.NamedTemporaryFile() as file: file.write(b'x')\n"
    code += "print(asyncio.run(asyncio.sleep(0, 1)), sqlite3.connect('a.db').execute('select 2').fetchone()[0])\n"
    code += "print(subprocess.run(['/usr/bin/env'], capture_output=True).returncode) if False else print(3)"
    assert sandbox.run(code).stdout == "1 2\n3\n"


def test_input_is_empty(sandbox: Sandbox) -> None:
    assert "EOFError" in sandbox.run("input()").stderr


def test_lone_surrogates_in_the_program(sandbox: Sandbox) -> None:
    assert sandbox.run("print('\ud800')").code == 1


def test_cancelling_ends_it(sandbox: Sandbox) -> None:
    cancelled = threading.Event()
    threading.Timer(0.3, cancelled.set).start()
    assert sandbox.run("import time; time.sleep(60)", cancelled=cancelled).ending == "cancelled"


def test_many_at_a_time(sandbox: Sandbox) -> None:
    outputs: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: outputs.update({i: sandbox.run(f"print({i})").stdout})) for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outputs == {i: f"{i}\n" for i in range(6)}


def test_it_refuses_where_it_cannot_isolate(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object, **__: object) -> None:
        raise WorkError("programs cannot be isolated here: unshare: Operation not permitted")

    monkeypatch.setattr(module.Sandbox, "run", refused)
    with pytest.raises(InputError, match="unshare: Operation not permitted") as error:
        Sandbox.open()
    assert "--unsafe-tools" in (error.value.hint or "")
    assert not Sandbox.open(unsafe=True).isolated


def test_bubblewrap_that_does_not_work_is_left_out(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: no permission' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    assert (module._failure(Sandbox(bwrap=str(broken))) or "").startswith("bwrap: no permission")
    if sandbox.bwrap is None:
        assert Sandbox.open().bwrap is None
    else:
        monkeypatch.setenv("PATH", os.path.dirname(sandbox.bwrap))
        assert Sandbox.open().bwrap == sandbox.bwrap


def test_without_isolation_there_are_limits() -> None:
    unsafe = Sandbox(isolated=False)
    execution = unsafe.run("import os\nprint(sorted(os.environ))\nopen('x', 'w').write('x')\nprint(os.listdir('.'))")
    assert execution.stdout.splitlines()[0] in ("['HOME', 'LANG', 'TMPDIR']", "['HOME', 'LANG', 'LC_CTYPE', 'TMPDIR']")
    assert "MemoryError" in unsafe.run("bytearray(10 << 30)").stderr
    assert replace(unsafe, limits=replace(unsafe.limits, seconds=0.3)).run("while True: pass").ending == "time"


@pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 100])
@pytest.mark.parametrize("piece", [1, 3, 50])
def test_capture_has_the_beginning_and_the_end(size: int, piece: int) -> None:
    data = bytes(48 + i % 75 for i in range(size))
    capture = Capture(10)
    for at in range(0, size, piece):
        capture.push(data[at : at + piece])
    if size <= 10:
        assert capture.text() == data.decode() and capture.dropped == 0
    else:
        assert capture.text() == f"{data[:5].decode()}\n[{size - 10:,} bytes left out]\n{data[-5:].decode()}"
