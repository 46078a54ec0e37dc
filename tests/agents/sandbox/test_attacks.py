"""What programs do to get out of the sandbox, or to harm the machine. The guide lists them: docs/guide/tools.md."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from synthe_core.agents.sandbox.limits import Execution
from synthe_core.agents.sandbox.sandbox import Sandbox, interpreter
from synthe_core.agents.sandbox.seccomp import filter_program
from tests.paths import ROOT
from tests.processes import start

FILTERED = pytest.mark.skipif(not filter_program(), reason="no seccomp filter for this processor")


def tried(sandbox: Sandbox, code: str, **limits: float) -> Execution:
    return replace(sandbox, limits=replace(sandbox.limits, **limits)).run(code)  # type: ignore[arg-type]


# Files


@pytest.mark.parametrize(
    "path", ["/etc/shadow", "/etc/passwd", os.path.expanduser("~/.profile"), "/proc/1/environ", "/proc/1/mem", "/sys"]
)
def test_files_outside_are_not_there(sandbox: Sandbox, path: str) -> None:
    execution = sandbox.run(
        f"import os\nprint(os.listdir({path!r}) if os.path.isdir({path!r}) else open({path!r}).read())"
    )
    assert execution.code == 1
    assert "No such file" in execution.stderr or "Permission denied" in execution.stderr


def test_environments_of_others_are_not_there(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SYNTHE_TEST_SECRET", "s3cret")
    execution = sandbox.run(
        "import glob, os\nprint(dict(os.environ), os.getppid())\n"
        f"for path in ['/proc/{os.getpid()}/environ', *glob.glob('/proc/*/environ')]:\n"
        "    try: print(path, open(path, 'rb').read())\n"
        "    except OSError as error: print(path, error)\n"
    )
    assert execution.succeeded
    assert "s3cret" not in execution.stdout and "SYNTHE" not in execution.stdout
    assert f"/proc/{os.getpid()}/environ [Errno 2]" in execution.stdout


def test_symbolic_links_out_of_the_scratch_folder_lead_nowhere(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("s3cret")
    execution = sandbox.run(
        f"import os\nfor number, target in enumerate([{str(secret)!r}, '../..{secret}', '/proc/1/root{secret}',"
        f" '/proc/self/cwd/..{secret}']):\n"
        "    os.symlink(target, f'link{number}')\n"
        "    try: print(open(f'link{number}').read())\n"
        "    except OSError as error: print(error.strerror)\n"
        "    try: open(f'link{number}', 'w').write('changed')\n"
        "    except OSError as error: print(error.strerror)\n"
    )
    assert execution.succeeded
    assert "s3cret" not in execution.stdout and secret.read_text() == "s3cret"


def test_only_the_scratch_folder_is_writable(sandbox: Sandbox) -> None:
    prefix = os.path.realpath(sys.base_prefix)
    execution = sandbox.run(
        f"import os\nfor folder in ['/', '/usr', {prefix!r}, '/etc', '/proc', '/dev', os.path.dirname(os.__file__)]:\n"
        "    try: open(folder + '/new', 'w'); print('wrote to', folder)\n"
        "    except OSError: pass\n"
        "for path in ['/program.py', os.__file__]:\n"
        "    try: open(path, 'a'); print('opened', path)\n"
        "    except OSError: pass\n"
        "open('here', 'w').write('x')\nprint(os.listdir('.'), os.listdir('/tmp'))"
    )
    assert execution.stdout == "['here'] ['here']\n"


def test_nothing_stays_for_the_next_program(sandbox: Sandbox) -> None:
    assert sandbox.run("open('here', 'w').write('x')").succeeded
    assert sandbox.run("import os\nprint(os.listdir('.'))").stdout == "[]\n"


def test_devices_cannot_be_written_or_made(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        "import os, stat\nprint(sorted(os.listdir('/dev')))\nopen('/dev/null', 'w').write('x')\n"
        "for kind, device in ((stat.S_IFBLK, (8, 0)), (stat.S_IFBLK, (254, 0)), (stat.S_IFCHR, (1, 1))):\n"
        "    try: os.mknod('device', kind | 0o600, os.makedev(*device)); print('made one')\n"
        "    except PermissionError: pass\n"
        "for name in ('mem', 'kmsg', 'sda', 'vda', 'tty'):\n"
        "    try: open('/dev/' + name, 'r+b'); print('opened', name)\n"
        "    except OSError: pass\n"
    )
    assert execution.stdout == "['full', 'null', 'random', 'urandom', 'zero']\n"


def test_the_disk_cannot_be_filled(sandbox: Sandbox) -> None:
    execution = tried(
        sandbox,
        "written = 0\ntry:\n    for number in range(100):\n        with open(str(number), 'wb') as file:\n"
        "            for _ in range(8): written += file.write(bytes(1 << 19)); file.flush()\n"
        "except OSError as error: print(error.strerror)\nprint(written)",
        disk=4 << 20,
    )
    words, written = execution.stdout.splitlines()
    assert words == "No space left on device" and int(written) <= 4 << 20


def test_inodes_are_limited(sandbox: Sandbox) -> None:
    execution = sandbox.run("for i in range(10_000): open(str(i), 'w').close()")
    assert "No space left on device" in execution.stderr or execution.ending == "files"


# Memory, time, output


def test_ten_gigabytes_are_refused(sandbox: Sandbox) -> None:
    assert "MemoryError" in sandbox.run("bytearray(10 << 30)").stderr
    assert "MemoryError" in sandbox.run("rows = []\nwhile True: rows.append(bytearray(16 << 20))").stderr


def test_the_memory_of_all_processes_is_limited(sandbox: Sandbox) -> None:
    """Each below the limit of one process, and together above it."""
    execution = tried(
        sandbox,
        "import os, time\nfor _ in range(8):\n    if not os.fork():\n        data = bytearray(b'x') * (48 << 20)\n"
        "        time.sleep(60)\ntime.sleep(60)",
        memory=128 << 20,
    )
    assert execution.ending == "memory"


@FILTERED
def test_memory_that_no_limit_counts_is_refused(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        "import ctypes, os\ntry: os.memfd_create('x')\nexcept PermissionError: print('memfd')\n"
        "libc = ctypes.CDLL(None, use_errno=True)\nprint(libc.shmget(0, 1 << 30, 0o1600), ctypes.get_errno())"
    )
    assert execution.stdout == "memfd\n-1 1\n"


def test_a_fork_bomb_ends(sandbox: Sandbox) -> None:
    execution = tried(sandbox, "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", seconds=1)
    assert execution.ending in ("time", "processes")
    assert sandbox.run("print(1)").stdout == "1\n"  # and takes nobody else's processes


def test_an_endless_loop_ends(sandbox: Sandbox) -> None:
    assert tried(sandbox, "while True: pass", seconds=0.5).ending == "time"


@pytest.mark.slow
def test_processor_time_is_limited_though_its_signal_is_ignored(sandbox: Sandbox) -> None:
    code = "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass"
    assert tried(sandbox, "while True: pass", cpu_seconds=1).ending == "time"
    assert tried(sandbox, code, cpu_seconds=1).code == signal.SIGKILL


def test_a_sleeping_program_ends(sandbox: Sandbox) -> None:
    code = "import signal, time\nfor each in range(1, 32):\n    try: signal.signal(each, signal.SIG_IGN)\n"
    code += "    except OSError: pass\ntime.sleep(60)"
    assert tried(sandbox, code, seconds=0.5).ending == "time"


def test_endless_output_takes_no_memory(sandbox: Sandbox) -> None:
    execution = tried(sandbox, "while True: print('x' * 65536)", seconds=1, output=1000)
    assert execution.ending == "time" and execution.dropped > 1_000_000
    assert len(execution.stdout) < 1100


def test_a_decompression_bomb_is_cut(sandbox: Sandbox) -> None:
    code = "import sys, zlib\nbomb = zlib.compress(bytes(16 << 20), 9)\nprint(len(bomb), file=sys.stderr)\n"
    code += "unpacked = zlib.decompressobj()\nwhile bomb:\n"
    code += "    sys.stdout.write(unpacked.decompress(bomb, 1 << 16).decode())\n"
    execution = tried(sandbox, code + "    bomb = unpacked.unconsumed_tail\nprint('end')", output=1000)
    assert execution.ending == "exit" and execution.stdout.endswith("\0end\n") and len(execution.stdout) < 1100


# Other processes


def test_signals_reach_nobody_outside(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        "import os, signal\n"
        f"for pid in (1, os.getppid(), {os.getpid()}, {os.getppid()}, -1):\n"
        "    try: os.kill(pid, signal.SIGTERM if pid == -1 else signal.SIGKILL); print('sent', pid)\n"
        "    except OSError as error: print(pid, error.strerror)\n"
        "print('end')"
    )
    assert f"{os.getpid()} No such process" in execution.stdout
    assert execution.stdout.endswith("end\n")  # the first process cannot be killed from inside


@FILTERED
def test_tracing_is_refused(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "for request, pid in ((0, 0), (16, 1), (0x4206, 1)):\n"
        "    print(libc.ptrace(request, pid, 0, 0), ctypes.get_errno())\n"
    )
    assert execution.stdout == "-1 1\n" * 3


@FILTERED
def test_new_namespaces_and_mounts_are_refused(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "print(libc.unshare(0x10000000), libc.mount(b'tmpfs', b'/scratch', b'tmpfs', 0, 0))\n"
        "print(libc.syscall(56, 0x10000000 | 17, 0, 0, 0, 0) if __import__('platform').machine() == 'x86_64' else -1)\n"
    )
    assert execution.stdout == "-1 -1\n-1\n"


def test_no_privileges_are_left(sandbox: Sandbox) -> None:
    execution = sandbox.run(
        "import os\nprint(os.getuid() != 0, os.getgroups() in ([], [os.getgid()], [65534]))\n"
        "status = dict(line.split(':\\t', 1) for line in open('/proc/self/status') if ':\\t' in line)\n"
        "sets = {status[name].strip() for name in ('CapPrm', 'CapEff', 'CapBnd', 'CapAmb')}\n"
        "print(sets, status['NoNewPrivs'].strip())\n"
        "for change in (lambda: os.setuid(0), lambda: os.chroot('/scratch'), lambda: os.setgroups([0])):\n"
        "    try: change(); print('changed')\n"
        "    except OSError: pass\n"
    )
    assert execution.stdout == "True True\n{'0000000000000000'} 1\n"


def test_children_do_not_survive(sandbox: Sandbox, tmp_path: Path) -> None:
    """Detached by two forks and a session of their own, with the output open."""
    mark = f"survivor-{os.getpid()}"
    execution = sandbox.run(
        "import os, sys, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n"
        f"        os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])\n"
        "    os._exit(0)\ntime.sleep(0.2)\nprint('end')"
    )
    assert execution.succeeded and execution.stdout == "end\n"
    assert not processes_with(mark)


def processes_with(mark: str) -> list[str]:
    pids = []
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):
            if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                pids.append(pid)
    return pids


def test_it_dies_with_its_caller(sandbox: Sandbox) -> None:
    """The process that runs the sandbox is killed, without any chance to tidy up."""
    mark = f"orphan-{os.getpid()}"
    code = f"from synthe_core.agents.sandbox.sandbox import Sandbox\nSandbox(bwrap={sandbox.bwrap!r}).run("
    program = (
        f"import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', {mark!r}])"
    )
    caller = start([sys.executable, "-c", f"{code}{program!r})"], cwd=ROOT)
    end = time.monotonic() + 30
    while not processes_with(mark) and time.monotonic() < end:
        time.sleep(0.02)
    running = len(processes_with(mark))
    caller.kill()
    caller.wait()
    while processes_with(mark) and time.monotonic() < end:
        time.sleep(0.02)
    assert running == 1 and not processes_with(mark)


# The network


def test_there_is_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(f"\0synthe-test-{os.getpid()}")
        local.listen()
        execution = sandbox.run(
            "import socket\n"
            "def attempt(family, kind, address):\n"
            "    try:\n        with socket.socket(family, kind) as one:\n"
            "            one.connect(address); one.send(b'x'); print('sent')\n"
            "    except OSError as error: print(error.strerror)\n"
            f"attempt(socket.AF_INET, socket.SOCK_STREAM, ('127.0.0.1', {server.getsockname()[1]}))\n"
            "attempt(socket.AF_INET, socket.SOCK_DGRAM, ('127.0.0.1', 53))\n"
            "attempt(socket.AF_INET, socket.SOCK_DGRAM, ('8.8.8.8', 53))\n"
            "attempt(socket.AF_INET6, socket.SOCK_STREAM, ('::1', 80))\n"
            f"attempt(socket.AF_UNIX, socket.SOCK_STREAM, '\\0synthe-test-{os.getpid()}')\n"
            "attempt(socket.AF_VSOCK, socket.SOCK_STREAM, (2, 22))\n"
            "attempt(socket.AF_NETLINK, socket.SOCK_RAW, (0, 0))\n"
        )
    assert "sent" not in execution.stdout and len(execution.stdout.splitlines()) == 7


def test_the_interpreter_is_not_the_one_of_the_environment() -> None:
    assert interpreter() == os.path.realpath(interpreter())
