"""`synthe introspect`: what a model does with a text, as a page, in the terminal, or as JSON lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from synthe_cli.help import SETTINGS, Command
from synthe_cli.options import CheckpointArgument, DeviceOption, JsonOption, find_checkpoint
from synthe_core.errors import InputError

app = typer.Typer(**SETTINGS)


@app.command(
    cls=Command,
    epilog="""\
synthe introspect runs/tiny --text "def fib(n):"                      a table of every learner's figures
synthe introspect runs/tiny --file my.py --html out.html              a page: tokens on top, heat strips under them
synthe introspect runs/tiny -t "a = 1; b = 2; a" --token 5            whence token 5 reads, and what became of its write
synthe introspect runs/tiny -t "x" --layers 0-1 --what gates,memory --json | jq .
synthe introspect runs/tiny --diff runs/other --file my.py            two models on one text
synthe introspect runs/tiny --watch --file my.py                      live, while the text streams through
synthe introspect --schema                                            what every name means""",
)
def introspect(
    checkpoint: CheckpointArgument = "",
    text: Annotated[str | None, typer.Option("--text", "-t", metavar="TEXT", help="What the model is to read.")] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="A file to read instead; - or none: stdin.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="Write the report as one page, needing nothing else.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option("--layers", metavar="BLOCKS", help="Only these blocks, as 0-3 or 0,5.")
    ] = None,
    what: Annotated[
        list[str] | None,
        typer.Option(
            "--what", metavar="GROUPS", help="Of stream,gates,routing,memory,confidence,depth. All by default."
        ),
    ] = None,
    token: Annotated[
        list[int] | None,
        typer.Option("--token", metavar="N", help="Follow what this token reads and writes. Repeatable."),
    ] = None,
    diff: Annotated[
        str | None, typer.Option("--diff", metavar="CHECKPOINT", help="Compare with this model, on the same text.")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Show it live while the text streams through.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print what every emitted name means.")] = False,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what a model does with a text: gates, routing, memories, confidence and depth, token by token.

    Readings of memories are followed back to the tokens that wrote what they read, exactly and with what was erased in
    between. The text is read once, from a fresh state. Strips are the mean over heads; the page shows every head.
    """
    from synthe_cli.commands import introspect_view

    if schema:
        introspect_view.show_schema(as_json)
        return
    if not checkpoint:
        raise InputError("which model? CHECKPOINT is missing", "name a run: synthe introspect runs/tiny --text ...")
    if watch and (html or diff or token or as_json):
        raise InputError("--watch shows the text as it streams, and nothing else", "leave out the other views")
    path = find_checkpoint(checkpoint)
    read = _text(text, file, checkpoint)

    from synthe_core.introspection import compare
    from synthe_core.introspection import report as reports
    from synthe_core.introspection.page import page
    from synthe_core.storage.atomic import write_file

    asked = {"layers": layers, "what": tuple(what or ()), "device": device or "auto"}
    if watch:
        opened, model, context = reports.open_model(path, asked.pop("device"))  # type: ignore[arg-type]
        with context.activate():
            introspect_view.watch(model, opened.tokenizer(), read, **asked)
        return
    if html is not None and not html.absolute().parent.is_dir():
        raise InputError(f"no such folder: {html.parent}", "make it first")
    seen = [reports.introspect(path, read, tokens=tuple(token or ()), **asked)]  # type: ignore[arg-type]
    if diff is not None:
        other = reports.introspect(find_checkpoint(diff), read, tokens=tuple(token or ()), **asked)  # type: ignore[arg-type]
        seen = list(compare.align_reports(seen[0], other))
    if as_json:
        for report in seen:
            for line in reports.lines(report):
                print(json.dumps(line, ensure_ascii=False))
    elif html is None:
        introspect_view.show(seen, token or ())
    if html is not None:
        write_file(html, page(seen))
        print(html, file=sys.stderr if as_json else sys.stdout)


def _text(text: str | None, file: Path | None, checkpoint: str) -> str:
    """--text, the text of --file, or stdin."""
    if text is not None and file is not None:
        raise InputError("--text and --file are both given", "one text is read: leave one out")
    if text is not None:
        return text
    if file is None or str(file) == "-":
        if checkpoint == "-" or sys.stdin.isatty():
            raise InputError("there is no text to look at", 'give some: --text "def fib(n):" or --file FILE')
        return sys.stdin.buffer.read().decode("utf-8", "replace")
    try:
        return file.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"no such file: {file}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 text (byte {error.start})", "introspect reads text") from None
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from None
