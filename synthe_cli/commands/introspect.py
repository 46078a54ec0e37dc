"""`synthe introspect`: what a model computes on a text, as a page, in the terminal, or as JSON lines."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.escape import json_text
from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import CheckpointArgument, DeviceOption, JsonOption, find_checkpoint
from synthe_core.errors import InputError

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe introspect runs/tiny --text "def fib(n):"                      a table of every learner's signals
synthe introspect runs/tiny --file my.py --html out.html              a page: tokens, with heat maps below
synthe introspect runs/tiny -t "a = 1; b = 2; a" --token 5            which tokens token 5 reads from
synthe introspect runs/tiny -t "x" --layers 0-1 --what gates,memory --json | jq .
synthe introspect runs/tiny --diff runs/other --file my.py            compare two models on one text
synthe introspect runs/tiny --watch --file my.py                      live, token by token
synthe introspect --schema                                            the meaning of every name""",
)
def introspect(
    checkpoint: CheckpointArgument = "",
    text: Annotated[str | None, typer.Option("--text", "-t", metavar="TEXT", help="Text to read.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="File to read instead. - is stdin.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as a self-contained page.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="BLOCKS", help="Only these blocks, as 0-3 or 0,5.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            "--what", metavar="GROUPS", help="Any of stream,gates,routing,memory,confidence,depth. Default: all."
        ),
    ] = None,
    token: Annotated[
        list[int] | None,
        typer.Option("--token", metavar="N", help="Trace what this token reads and writes. Repeatable."),
    ] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="CHECKPOINT", help="Compare with this model on the same text.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show the signals live while the text is read.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the meaning of every emitted name.")] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model computes on a text: gates, routing, memories, confidence and depth, token by token.

    Of an encoder the tokens are the latents that its blocks read, and the most likely classes are shown.

    Memory reads are traced back to the tokens that wrote them, exactly and including erasure. The text is read once,
    from an initial state. Strips show the mean over heads; the page shows every head.
    """
    from synthe_cli.commands import introspect_view

    if schema:
        introspect_view.show_schema(as_json)
        return
    if not checkpoint:
        raise InputError("CHECKPOINT is missing", "name a run: synthe introspect runs/tiny --text ...")
    if watch and (html or diff or token or as_json):
        raise InputError("--watch cannot be combined with other views", "leave out --html, --diff, --token and --json")
    path = find_checkpoint(checkpoint)
    read = _text(text, file, checkpoint)

    from synthe_core.introspection import compare
    from synthe_core.introspection import report as reports
    from synthe_core.introspection.encoder import introspect_any
    from synthe_core.introspection.page import page
    from synthe_core.storage.atomic import write_file

    options = {"layers": layers, "what": tuple(what or ()), "device": device or "auto"}
    if watch:
        opened, model, context = reports.open_model(path, options.pop("device"))  # type: ignore[arg-type]
        with context.activate():
            introspect_view.watch(model, opened.tokenizer(), read, **options)
        return
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"no such folder: {html.parent}", "create it first")
    seen = [introspect_any(path, read, tokens=tuple(token or ()), **options)]
    if diff is not None:
        other = introspect_any(find_checkpoint(diff), read, tokens=tuple(token or ()), **options)
        seen = list(compare.align_reports(seen[0], other))
    if as_json:
        for report in seen:
            for line in reports.lines(report):
                print(json_text(line))
    elif html is None:
        introspect_view.show(seen, token or ())
    if html is not None:
        write_file(html, page(seen))
        print(html, file=sys.stderr if as_json else sys.stdout)


def _text(text: str | None, file: Path | None, checkpoint: str) -> str:
    """--text, the text of --file, or stdin."""
    if text is not None and file is not None:
        raise InputError("--text and --file exclude each other", "leave one out")
    if text is not None:
        return text
    if file is None or str(file) == "-":
        if checkpoint == "-" or sys.stdin.isatty():
            raise InputError("no text given", 'for example --text "def fib(n):" or --file FILE')
        return sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {file}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start})", "introspect reads text") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
