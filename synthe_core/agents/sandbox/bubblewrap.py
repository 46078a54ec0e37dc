"""The command line by which bubblewrap shuts a program in."""

from __future__ import annotations

from collections.abc import Sequence

from synthe_core.agents.sandbox import launcher

INSIDE = "/launcher.py"
OPTIONS = ("--unshare-all", "--unshare-user", "--die-with-parent", "--as-pid-1", "--clearenv")
USER = ("--uid", str(launcher.NOBODY), "--gid", str(launcher.NOBODY), "--hostname", "sandbox")
CAPABILITY = ("--cap-add", "CAP_SETPCAP")
"""With which the launcher drops what is left of capabilities."""


def command(
    path: str, python: str, binds: Sequence[tuple[str, str]], links: Sequence[tuple[str, str]], disk: int
) -> list[str]:
    """Runs the launcher inside, as the first process. `launcher.PROGRAM_FILE` stands for the file descriptor of the
    program, and `launcher.REPORT_FILE` for that of the report.

    binds: (source, target) of files and folders, read-only but for devices. links: (path, target). disk: bytes of the
    scratch folder.
    """
    shown = [
        each
        for source, target in binds
        for each in ("--dev-bind" if target.startswith("/dev/") else "--ro-bind", source, target)
    ]
    linked = [each for place, target in links for each in ("--symlink", target, place)]
    scratch = [
        "--size",
        str(disk),
        "--perms",
        "0700",
        "--tmpfs",
        launcher.SCRATCH,
        "--symlink",
        launcher.SCRATCH,
        "/tmp",
    ]
    own = ["--ro-bind", launcher.__file__, INSIDE, "--ro-bind-data", launcher.PROGRAM_FILE, launcher.PROGRAM]
    ends = ["--proc", "/proc", "--remount-ro", "/", "--chdir", launcher.SCRATCH]
    inside = ["--", python, "-I", "-S", "-B", INSIDE, launcher.REPORT_FILE, "inside"]
    return [path, *OPTIONS, *USER, *CAPABILITY, *shown, *linked, *scratch, *own, *ends, *inside]
