"""`synthe hub`: upload and download .synapse files on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.escape import escaped
from synthe_cli.help import SETTINGS, Command, Group
from synthe_cli.options import CheckpointArgument, JsonOption, find_checkpoint
from synthe_cli.renderer import choose_renderer
from synthe_core.events import results
from synthe_core.units import format_size

ABOUT = "Upload and download .synapse files on the Hugging Face hub."

app = typer.Typer(cls=Group, help=ABOUT, **SETTINGS)
RepositoryArgument = Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the hub.")]
RevisionOption = Annotated[
    str | None, typer.Option("--revision", "-r", metavar="REV", help="Branch, tag or commit. Default: main.")
]


@app.callback(help=ABOUT)
def _group() -> None: ...


@app.command(
    cls=Command,
    short_help="Upload a file with its model card.",
    epilog="""\
synthe hub push synthe-60m.synapse ORG/NAME
synthe hub push synthe-60m.synapse ORG/NAME --private --revision v2 --message "int4"
synthe pack runs/60m -o synthe-60m.synapse | synthe hub push - ORG/NAME""",
)
def push(
    file: CheckpointArgument,
    repository: RepositoryArgument,
    private: Annotated[bool, typer.Option("--private", help="Create a new repository as private.")] = False,
    revision: RevisionOption = None,
    message: Annotated[str | None, typer.Option("--message", "-m", metavar="TEXT", help="Commit message.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Upload a .synapse file, with its README.md as the model card, and print its URL.

    The repository is created if it does not exist. You need a token with write access: `hf auth login` or HF_TOKEN.
    """
    path = find_checkpoint(file)

    from synthe_core.packing.hub import push

    with choose_renderer(as_json) as shown:
        events = push(path, repository, private=private, revision=revision, message=message)
        for result in results(events, shown.show):
            if as_json:
                shown.show(result)
            else:
                shown.close()
                print(escaped(result.values["url"]))


@app.command(
    cls=Command,
    short_help="Download a file. An interrupted download resumes.",
    epilog="""\
synthe hub pull ORG/NAME
synthe hub pull ORG/NAME --revision v2 -o models/mine.synapse
synthe hub pull ORG/NAME | synthe generate - --prompt "def \"""",
)
def pull(
    repository: RepositoryArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="File or folder. Default: the file's own name.")
    ] = None,
    revision: RevisionOption = None,
    file: Annotated[
        str | None, typer.Option("--file", metavar="NAME", help="The file to download, if the repository has several.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Download a .synapse file, check it, and print its path.

    An interrupted download stays beside the file, and the same command resumes it.
    """
    from synthe_core.packing.hub import pull

    with choose_renderer(as_json) as shown:
        for result in results(pull(repository, out, revision=revision, name=file), shown.show):
            shown.result(result)


@app.command(
    cls=Command,
    short_help="Search for repositories with .synapse files.",
    epilog="""\
synthe hub search code
synthe hub search "shakespeare small" --json""",
)
def search(
    words: Annotated[str, typer.Argument(metavar="WORDS", help="Words in the name.")], as_json: JsonOption = False
) -> None:
    """List matching repositories tagged `synapse`, sorted by downloads."""
    from synthe_core.packing.hub import search

    _print(search(words), as_json)


@app.command(
    "list",
    cls=Command,
    short_help="List the files of a repository, or the repositories of an owner.",
    epilog="""\
synthe hub list ORG/NAME        its .synapse files, at every branch and tag
synthe hub list ORG             its repositories""",
)
def list_files(
    name: Annotated[str, typer.Argument(metavar="NAME", help="ORG/NAME, or ORG.")], as_json: JsonOption = False
) -> None:
    """List the .synapse files of a repository, or the repositories of a user or organisation that have some."""
    from synthe_core.packing.hub import listing

    _print(listing(name), as_json)


def _print(events: Any, as_json: bool) -> None:
    with choose_renderer(as_json) as shown:
        for result in results(events, shown.show):
            if as_json:
                shown.show(result)
            else:
                print(_table(result.values))


def _table(values: dict[str, Any]) -> str:
    if "files" in values:
        rows = [[f["file"], f["revision"], f["commit"][:12], format_size(f["bytes"])] for f in values["files"]]
        return figures.table(["file", "revision", "commit", "size"], rows, left=3) if rows else "no .synapse files"
    rows = [[each["repository"], str(each["downloads"])] for each in values["repositories"]]
    return figures.table(["repository", "downloads"], rows) if rows else "nothing found"
