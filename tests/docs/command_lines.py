"""Command lines of the documentation, taken apart and parsed without being run."""

from __future__ import annotations

import importlib.util
import re
import shlex
from typing import Any

import typer

from synthe_cli.app import app
from tests.docs.markdown import Block

SHELL_WORDS = {"do", "then", "else", "time", "if", "!"}
OTHER_PROGRAMS = {
    *("cat", "cp", "curl", "echo", "git", "jq", "ls", "openssl", "ssh-keygen", "unzip"),
    *("for", "done", "fi"),
    *("lm-eval", "mkdocs", "mypy", "pip", "pytest", "python", "ruff", "torchrun", "transformers", "uv"),
}


def lines(block: Block) -> list[str]:
    """The commands of a block: what follows `$ `, and of `sh` every line; continued lines are joined."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    if block.language != "sh":
        return [line[2:] for line in text.splitlines() if line.startswith("$ ")]
    return [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def commands(line: str) -> list[list[str]]:
    """The simple commands of a line: words between pipes, `&&`, `;` and `&`, without redirections."""
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    simple: list[list[str]] = [[]]
    words = iter(lexer)
    for word in words:
        if re.fullmatch(r"[|&;]+", word):
            simple.append([])
        elif re.fullmatch(r"[<>]+", word):
            next(words)
        elif simple[-1] or (word not in SHELL_WORDS and not re.match(r"[A-Z_]+=", word)):
            simple[-1].append(word)
    return [words for words in simple if words]


def check(words: list[str]) -> None:
    """AssertionError, or the parser's own error, where a command is unknown or takes no such option or argument."""
    program, *arguments = words
    if program == "synthe":
        _check_synthe(arguments)
        return
    assert program in OTHER_PROGRAMS, f"unknown program: {program}"
    if arguments[:1] == ["-m"] and arguments[1].partition(".")[0] in ("tests", "docs", "synthe_cli", "synthe_core"):
        assert importlib.util.find_spec(arguments[1]), f"no module {arguments[1]}"


def _check_synthe(arguments: list[str]) -> None:
    command: Any = typer.main.get_command(app)
    context = _context(command, "synthe", None)
    path: list[str] = []
    while hasattr(command, "resolve_command"):
        options, arguments = _parsed(command, context, arguments)
        if not arguments:
            assert options or command.invoke_without_command, f"synthe {' '.join(path)} needs a command"
            return
        name, command, arguments = command.resolve_command(context, arguments)
        path.append(name)
        context = _context(command, name, context)
    if context.ignore_unknown_options:
        _check_keys(path, command, arguments)
    options, rest = _parsed(command, context, arguments)
    assert not rest or context.allow_extra_args, f"synthe {' '.join(path)} takes no {rest}"
    for parameter in command.params:
        missing = options.get(parameter.name) in (None, ())
        assert not (missing and parameter.required) or "help" in options, f"{parameter.name} is required"


def _context(command: Any, name: str, parent: Any) -> Any:
    return command.context_class(command, info_name=name, parent=parent, **command.context_settings)


def _parsed(command: Any, context: Any, arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The options that a command is given, and what they leave over. The parser names an unknown one."""
    options, rest, _ = command.make_parser(context).parse_args(args=list(arguments))
    return options, rest


def _check_keys(path: list[str], command: Any, arguments: list[str]) -> None:
    """Options that a command does not have itself are those of its merge method, or the keys of its task."""
    own = {name for parameter in command.params for name in [*parameter.opts, *parameter.secondary_opts]}
    if path[0] == "merge":
        from synthe_core.merging.method import Method

        keys = {"weights", *Method(path[1]).parameters}
    else:
        from synthe_core.tasks import TASKS

        keys = set(TASKS[path[1]].Config.model_fields)
    for word in arguments:
        option = word.partition("=")[0]
        if option.startswith("--") and option not in own | {"--help"}:
            assert option[2:].replace("-", "_") in keys, f"synthe {' '.join(path)} has no option {option}"
