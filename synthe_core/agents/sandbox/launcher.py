"""A process that shuts itself in, and then runs a program.

It is a script of its own that imports nothing of the package. Its argument is the file descriptor of its report; the
first line of its input is a job, and when that input ends, the program is killed: so it never outlives whoever started
it. The report has one JSON object a line: `{"error": ...}` if the program cannot be shut in, otherwise
`{"status": ..., "reason": ...}` at its end.

Three processes: the launcher itself stays outside and waits; its child is the first process of a new PID namespace,
builds the file system and watches the memory; the child of that is the program. When the first process of a PID
namespace ends, the kernel kills all others, so nothing survives the program. With bubblewrap, that makes the namespaces
and the file system, and runs this script inside, as the first process.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import sys
from contextlib import suppress
from typing import Any, NoReturn

NEW_USER, NEW_PID, NEW_NET, NEW_IPC, NEW_UTS, NEW_MOUNT = (
    0x10000000, 0x20000000, 0x40000000, 0x08000000, 0x04000000, 0x00020000,
)  # fmt: skip
READ_ONLY, NO_SUID, NO_DEV, NO_EXEC, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
DETACH = 2
SET_DEATH_SIGNAL, SET_DUMPABLE, SET_SECCOMP, DROP_BOUND, SET_SUBREAPER, NO_NEW_PRIVILEGES = 1, 4, 22, 24, 36, 38
NOBODY = 65534
SCRATCH, PROGRAM = "/scratch", "/program.py"
PROGRAM_FILE, REPORT_FILE = "{program}", "{report}"  # file descriptors in the command of bubblewrap
MAX_FILES = 4096  # in the scratch folder
MAX_CAPABILITY = 63
OVER_EXIT = 250  # the status of the first process over a limit
WATCH = 0.02  # seconds between two looks at the memory
PAGE = resource.getpagesize()

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> int:
    """A function of the C library. Raises OSError."""
    result = int(getattr(libc, name)(*arguments))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{name}: {os.strerror(error)}")
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    call("mount", source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())


def prctl(option: int, value: int = 0, third: Any = 0) -> None:
    call("prctl", option, ctypes.c_ulong(value), third, ctypes.c_ulong(0), ctypes.c_ulong(0))


# The file system


def build_root(job: dict[str, Any]) -> bool:
    """A read-only root with the interpreter and its libraries, and the scratch folder. Returns whether it has /proc."""
    mount("", "/", flags=RECURSIVE | PRIVATE)
    sources = [(os.open(source, os.O_PATH | os.O_CLOEXEC), target) for source, target in job["binds"]]
    root = next(folder for folder in ("/tmp", "/mnt", "/run", "/var") if os.path.isdir(folder))
    mount("tmpfs", root, "tmpfs", NO_SUID | NO_DEV, "size=4m,mode=0755")
    for target, link in job["links"]:
        os.makedirs(root + os.path.dirname(target), exist_ok=True)
        os.symlink(link, root + target)
    for descriptor, target in sources:
        bind(descriptor, root + target, device=target.startswith("/dev/"))
    write_program(root + PROGRAM, job["code"])
    owner = f"uid={os.getuid()},gid={os.getgid()}" if job["user"] else f"uid={NOBODY},gid={NOBODY}"
    os.mkdir(root + SCRATCH)
    size = f"size={job['limits']['disk']},nr_inodes={MAX_FILES},mode=0700,{owner}"
    mount("tmpfs", root + SCRATCH, "tmpfs", NO_SUID | NO_DEV | NO_EXEC, size)
    os.symlink(SCRATCH, root + "/tmp")
    has_proc = mount_proc(root + "/proc")
    os.chdir(root)
    pivot_root()
    call("umount2", b".", DETACH)
    os.chdir("/")
    mount("", "/", flags=REMOUNT | READ_ONLY | NO_SUID | NO_DEV)
    for descriptor, _ in sources:
        os.close(descriptor)
    os.chdir(SCRATCH)
    return has_proc


def pivot_root() -> None:
    number = 155 if os.uname().machine == "x86_64" else 41
    if libc.syscall(ctypes.c_long(number), b".", b".") < 0:
        raise OSError(ctypes.get_errno(), "pivot_root: " + os.strerror(ctypes.get_errno()))


def bind(descriptor: int, target: str, *, device: bool) -> None:
    """Shows a file or folder at `target`, read-only unless it is a device."""
    source = f"/proc/self/fd/{descriptor}"
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
    mount(source, target, flags=BIND)
    inherited = os.statvfs(target).f_flag & (NO_SUID | NO_EXEC | READ_ONLY | 1024 | 2048 | 4096)
    inherited = inherited & ~4096 | (
        1 << 21 if inherited & 4096 else 0
    )  # relatime has another bit in the flags of mount
    flags = NO_SUID | NO_EXEC if device else READ_ONLY | NO_SUID | NO_DEV
    mount("", target, flags=REMOUNT | BIND | flags | inherited)


def write_program(path: str, code: str) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogatepass") as file:
        file.write(code)


def mount_proc(target: str) -> bool:
    """The new PID namespace's own /proc; False where the kernel does not allow it, as in some containers."""
    os.mkdir(target)
    for options in ("subset=pid", ""):
        with suppress(OSError):
            mount("proc", target, "proc", NO_SUID | NO_DEV | NO_EXEC, options)
            return True
    return False


# Privileges


def enter_user_namespace() -> None:
    """Becomes the only user of a new user namespace."""
    user, group = os.getuid(), os.getgid()
    call("unshare", NEW_USER)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def become_nobody() -> None:
    """Gives root up: from here on the process is one of the user nobody, in a user namespace where there may be one."""
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)
    prctl(SET_DUMPABLE, 1)  # or its files in /proc would be root's
    with suppress(OSError):
        enter_user_namespace()


def drop_capabilities() -> None:
    for capability in range(MAX_CAPABILITY + 1):
        with suppress(OSError):
            prctl(DROP_BOUND, capability)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    call("capset", header, (ctypes.c_uint32 * 6)())
    prctl(NO_NEW_PRIVILEGES, 1)


class FilterProgram(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


def install_filter(program: bytes) -> None:
    if program:
        holder = FilterProgram(len(program) // 8, program)
        prctl(SET_SECCOMP, 2, ctypes.byref(holder))


def limit(limits: dict[str, Any], *, isolated: bool) -> None:
    """The limits of the program, which it cannot raise. Without a user namespace of its own, the user's other processes
    would count, too."""
    for name, value in (
        ("RLIMIT_AS", limits["memory"]),
        ("RLIMIT_FSIZE", limits["disk"]),
        ("RLIMIT_NOFILE", limits["files"]),
        *((("RLIMIT_NPROC", limits["processes"]),) if isolated else ()),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_MEMLOCK", 0),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_SIGPENDING", 64),
    ):
        if hasattr(resource, name):
            with suppress(ValueError, OSError):  # where it is lower already, or the system has none
                resource.setrlimit(getattr(resource, name), (value, value))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu_seconds"], limits["cpu_seconds"] + 1))


# The processes


def run_program(job: dict[str, Any]) -> NoReturn:
    """Becomes the program."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.closerange(3, 4096)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    limit(job["limits"], isolated=job["isolated"])
    if job["isolated"]:
        drop_capabilities()
        install_filter(bytes.fromhex(job["filter"]))
    os.execve(job["python"], [job["python"], "-I", *job["options"], job["program"]], job["environment"])


def start_program(job: dict[str, Any]) -> int:
    """Its process id."""
    if child := os.fork():
        return child
    try:
        run_program(job)
    except BaseException as error:
        os.write(2, f"the program cannot be started: {error}\n".encode())
    os._exit(126)


def first_process(job: dict[str, Any], report: int) -> NoReturn:
    """The first process of the namespace: builds it, runs the program, and ends with it."""
    try:
        call("unshare", NEW_MOUNT)
        has_proc = build_root(job)
        call("sethostname", b"sandbox", 7)
        if not job["user"]:
            become_nobody()
        prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
        if not has_proc:  # the memory of several processes cannot be counted
            job["limits"]["processes"] = 2
        run_and_watch(job, report)
    except BaseException as error:
        report_to(report, error=str(error) or type(error).__name__)
    os._exit(1)


def run_and_watch(job: dict[str, Any], report: int) -> NoReturn:
    """Runs the program as a child of the first process, and ends with it."""
    prctl(SET_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    program = start_program(job)
    drop_capabilities()
    os.closerange(0, 3)
    watch(program, job["limits"], report)


def watch(program: int, limits: dict[str, Any], report: int) -> NoReturn:
    """Waits for the program, reaps what it leaves behind, and ends all of them where they take too much."""
    own = os.getpid()
    while True:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == program:
                    report_to(report, status=os.waitstatus_to_exitcode(ended[1]), reason=None)
                    os._exit(0)
        if reason := excess(own, limits):
            report_to(report, status=0, reason=reason)
            os._exit(OVER_EXIT)
        signal.sigtimedwait({signal.SIGCHLD}, WATCH)


def excess(own: int, limits: dict[str, Any]) -> str | None:
    """What all processes but this one together have too much of. Where the kernel itself limits processes and files,
    they never have."""
    pages = processes = 0
    with suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal() and int(name) != own:
                processes += 1
                with suppress(OSError, IndexError), open(f"/proc/{name}/statm", encoding="ascii") as file:
                    pages += int(file.read().split()[1])
    if pages * PAGE > limits["memory"]:
        return "memory"
    if processes > limits["processes"] + 1:
        return "processes"
    scratch = os.statvfs(SCRATCH)
    return "files" if scratch.f_files - scratch.f_ffree > MAX_FILES else None


def run_bubblewrap(job: dict[str, Any], report: int) -> None:
    """Runs bubblewrap, and in it `run_inside`."""
    prctl(SET_SUBREAPER, 1)
    program, inner = anonymous_file(job["code"]), anonymous_file(json.dumps({**job, "code": ""}) + "\n")
    child = os.fork()
    if not child:
        try:
            os.dup2(inner, 0)
            for each in (program, report):
                os.set_inheritable(each, True)
            files = {PROGRAM_FILE: str(program), REPORT_FILE: str(report)}
            prctl(SET_DEATH_SIGNAL, signal.SIGKILL)
            os.execve(job["bwrap"][0], [files.get(each, each) for each in job["bwrap"]], {})
        except BaseException as error:
            report_to(report, error=str(error) or type(error).__name__)
        os._exit(1)
    os.close(1)
    os.close(2)
    wait_outside(child)


def anonymous_file(text: str) -> int:
    """The descriptor of a file in memory, at its beginning."""
    descriptor = os.memfd_create("synthe")
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(text.encode("utf-8", "surrogatepass"))
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def run_inside(report: int) -> NoReturn:
    """The first process in bubblewrap's namespaces."""
    try:
        run_and_watch(json.loads(read_line()), report)
    except BaseException as error:
        report_to(report, error=str(error) or type(error).__name__)
    os._exit(1)


def wait_outside(child: int, *, group: bool = False) -> int:
    """The exit code of a child, which is killed when the input ends."""
    poll = select.poll()
    poll.register(0, select.POLLIN | select.POLLHUP)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        over = not ended and bool(poll.poll(20)) and not os.read(0, 4096)
        if over or (ended and group):
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(child, signal.SIGKILL) if group else os.kill(child, signal.SIGKILL)
        if over:
            with suppress(ChildProcessError):
                while True:  # what bubblewrap leaves is a child of this process, too
                    os.waitpid(-1, 0)
            os._exit(1)
        if ended:
            return os.waitstatus_to_exitcode(status)


def report_to(report: int, **values: Any) -> None:
    with suppress(OSError):
        os.write(report, json.dumps(values).encode() + b"\n")


def main() -> None:
    report = int(sys.argv[1])
    if sys.argv[2:] == ["inside"]:
        run_inside(report)
    job = json.loads(read_line())
    if not job["isolated"]:
        write_program(job["program"], job["code"])
        os.chdir(job["scratch"])
        child = start_program(job)
        report_to(report, status=wait_outside(child, group=True), reason=None)
        return
    if job["bwrap"]:
        run_bubblewrap(job, report)
        return
    try:
        job["user"] = os.geteuid() != 0
        if job["user"]:
            enter_user_namespace()
        call("unshare", NEW_PID | NEW_NET | NEW_IPC | NEW_UTS)
        child = os.fork()
    except OSError as error:
        report_to(report, error=str(error))
        return
    if not child:
        first_process(job, report)
    os.close(1)
    os.close(2)
    wait_outside(child)


def read_line() -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        piece = os.read(0, 1 << 16)
        if not piece:
            sys.exit(1)
        line += piece
    return bytes(line)


if __name__ == "__main__":
    main()
