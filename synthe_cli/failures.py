"""Reports every failure as one line and a hint on stderr, with its exit code. Users never see a traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from synthe_cli.escape import escaped
from synthe_core.errors import Interrupted, SyntheError, closest

UsageError = typer.BadParameter.__mro__[1]  # click's, of whichever click this typer uses


def report(error: BaseException) -> int:
    """Prints an error and a hint to stderr, and returns the exit code."""
    if os.environ.get("SYNTHE_TRACEBACK"):
        traceback.print_exception(error)
    if isinstance(error, SyntheError):
        return _say(error.lines, error.hint, error.exit_code, "" if isinstance(error, Interrupted) else "error: ")
    if isinstance(error, UsageError):
        message, hint = _usage(error)
        return _say([message], hint, 2)
    if isinstance(error, BrokenPipeError):
        # The reader of the output has closed the pipe, as `head` does. Python would raise again when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return _say(["interrupted"], None, 130, "")
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return _say([f"{where}{error.strerror}"], None, 1)
    if isinstance(error, MemoryError):
        return _say(["out of memory"], "use a smaller train.batch or data.sequence", 1)
    text = " ".join(str(error).split()) or "no message"
    hint = "this is a bug in synthe; set SYNTHE_TRACEBACK=1 for the traceback"
    return _say([f"internal: {type(error).__name__}: {text}"], hint, 1)


def _say(lines: Sequence[str], hint: str | None, code: int, prefix: str = "error: ") -> int:
    print(prefix + "\n".join(map(escaped, lines)), file=sys.stderr)  # they may quote untrusted text
    if hint:
        print(f"hint: {escaped(hint)}", file=sys.stderr)
    return code


def _usage(error: BaseException) -> tuple[str, str | None]:
    """A parser's error as message and hint. An unknown option gets the nearest known one."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx else "synthe"
    hint = f"see `{path} --help`"
    wrong = getattr(error, "option_name", None)
    if wrong and type(error).__name__ == "NoSuchOption":
        known = (
            [opt for param in ctx.command.get_params(ctx) for opt in (*param.opts, *param.secondary_opts)]
            if ctx
            else []
        )
        near = closest(wrong, [opt for opt in known if opt.startswith("--")])
        return f"unknown option '{wrong}'", f"did you mean '{near}'?" if near else hint
    text = str(getattr(error, "format_message", error.__str__)()).strip().rstrip(".")
    return text[:1].lower() + text[1:].replace("\n\t", " ").replace("\n", " "), hint
