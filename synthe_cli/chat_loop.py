"""`synthe chat`, line by line: what is typed, what is answered, and the commands that begin with a slash."""

from __future__ import annotations

import inspect
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from synthe_cli.console import printable
from synthe_cli.options import sampled
from synthe_cli.signals import interruptible_input
from synthe_core.chat.conversation import Answer, Asked, Said, Talk
from synthe_core.errors import InputError, SyntheError, unknown
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.units import format_count

COUNT, SEED = "tokens", "seed"


class Leave(Exception):
    """The conversation is over."""


class Loop:
    """Reads lines and answers them. On a terminal it prompts and explains; from a pipe it prints answers only."""

    def __init__(self, talk: Talk, asked: Asked, *, as_json: bool = False) -> None:
        self.talk, self.asked, self.as_json = talk, asked, as_json
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.painted = self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self.help, "system": self.system, "reset": self.reset, "regenerate": self.regenerate,
            "set": self.set, "save": self.save, "load": self.load, "fork": self.fork, "sessions": self.sessions,
            "exit": self.exit,
        }  # fmt: skip

    def run(self) -> None:
        """Until the end of input, /exit, or Ctrl-C at the prompt. From a pipe, the first failure ends it."""
        if self.terminal:
            kind = "chat" if self.talk.taught else "continues text: it has no chat template"
            self.tell(f"{self.talk.model}  {kind}  /help lists commands, Ctrl-D leaves")
        for line in self.lines():
            try:
                self.take(line)
            except Leave:
                return
            except SyntheError as error:
                if not self.terminal:
                    raise
                self.tell(f"{error.message}" + (f"\n{error.hint}" if error.hint else ""))

    def take(self, line: str) -> None:
        """A message, or a command; `//` begins a message that begins with a slash."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name == "quit":
                name = "exit"
            if name not in self.commands:
                raise unknown("command", f"/{name}", [f"/{each}" for each in self.commands])
            self.commands[name](rest.strip())
        elif line.strip() or (self.terminal and not self.talk.taught):
            self.show(self.talk.say(line[1:] if line.startswith("//") else line, self.asked))

    def lines(self) -> Iterator[str]:
        """What is typed; a line that ends in a backslash goes on in the next."""
        if not self.terminal:
            yield from _piped_lines()
            return
        edit = _editing([f"/{name}" for name in self.commands])
        prompt = "\001\x1b[1;36m\002> \001\x1b[0m\002" if self.painted and edit else "> "
        message = ""
        while True:
            try:
                with interruptible_input():
                    message += input(". " if message else prompt)
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if message.endswith("\\"):
                message = message[:-1] + "\n"
                continue
            yield message
            message = ""

    # Answers

    def show(self, answer: Answer) -> None:
        """Prints an answer as it comes; Ctrl-C stops it, and once more leaves."""
        said = self._streamed(answer)
        if self.as_json:
            row = {
                "role": "assistant", "text": said.text, "finish_reason": said.reason, "tokens": said.tokens,
                "prompt_tokens": said.prompt, "cached_tokens": said.cached,
                "tokens_per_second": round(said.rate, 2), "session": self.talk.session,
            }  # fmt: skip
            print(json.dumps(row, ensure_ascii=False), flush=True)
        elif self.terminal:
            self.tell(described(said))

    def _streamed(self, answer: Answer) -> Said:
        """Prints the pieces of an answer, and passes Ctrl-C on to it; the second ends the program."""
        interrupted = False
        with closing(answer):
            while True:
                try:
                    piece = answer.throw(KeyboardInterrupt) if interrupted else next(answer)
                    interrupted = False
                    if not self.as_json:
                        sys.stdout.write(printable(piece) if self.terminal else piece)
                        sys.stdout.flush()
                except StopIteration as end:
                    said: Said = end.value
                    break
                except KeyboardInterrupt:
                    if inspect.getgeneratorstate(answer) == inspect.GEN_CLOSED:  # the answer has ended with it
                        raise
                    interrupted = True
        if not self.as_json:
            print(flush=True)
        return said

    def tell(self, text: str) -> None:
        """Something about the conversation, which is no part of it."""
        text = printable(text)
        print(f"\x1b[2m{text}\x1b[0m" if self.painted else text, file=sys.stderr, flush=True)

    # Commands: the first line of each is its help

    def help(self, rest: str) -> None:
        """lists the commands"""
        width = max(len(usage) for usage in USAGE.values())
        for name, command in self.commands.items():
            self.tell(f"{USAGE[name]:<{width}}  {inspect.getdoc(command)}")
        self.tell("a line that ends in \\ goes on in the next; Ctrl-C stops an answer; // stands for a slash")

    def system(self, rest: str) -> None:
        """shows the system prompt, or begins anew with this one"""
        if rest:
            self.talk.reset(rest)
            self.tell("begun anew with this system prompt")
        else:
            self.tell(self.talk.system or "there is no system prompt")

    def reset(self, rest: str) -> None:
        """forgets the conversation and begins anew"""
        self.talk.reset()
        self.tell("begun anew")

    def regenerate(self, rest: str) -> None:
        """writes the last answer once more"""
        self.show(self.talk.again(self.asked))

    def set(self, rest: str) -> None:
        """shows how answers are written, or changes it: /set temperature 0.7"""
        if not rest:
            values = {**self.asked.sampling.model_dump(), SEED: self.asked.seed, COUNT: self.asked.count}
            known = {key: "by chance" if value is None else value for key, value in values.items() if value != {}}
            self.tell("\n".join(f"{key} {value}" for key, value in known.items()))
            return
        key, _, value = rest.replace("=", " ").partition(" ")
        self.asked = changed(self.asked, key, value.strip())
        self.tell(f"{key} {value.strip()}")

    def save(self, rest: str) -> None:
        """keeps a copy of the conversation under a name"""
        self.talk.save(_one(rest, "save"))
        self.tell(f"kept as {rest}; /load {rest} goes on from here")

    def load(self, rest: str) -> None:
        """goes on with a conversation that was kept"""
        self.talk.load(_one(rest, "load"))
        self.tell(f"going on with {rest}")
        for turn in self.talk.turns[-1:]:
            self.tell(f"> {turn.said}\n{turn.answer}" if self.talk.taught else f"{turn.said}{turn.answer}")

    def fork(self, rest: str) -> None:
        """goes on under another name; the old one stays as it is"""
        old, own = self.talk.session, self.talk.own
        self.talk.fork(_one(rest, "fork"))
        self.tell(f"going on as {rest}" + ("" if own else f"; {old} stays as it is"))

    def sessions(self, rest: str) -> None:
        """lists the conversations that are kept"""
        names = [f"{name}  (this one)" if name == self.talk.session else name for name in sorted(self.talk.kept())]
        self.tell("\n".join(names) or "none is kept")

    def exit(self, rest: str) -> None:
        """leaves"""
        raise Leave


USAGE = {
    "help": "/help", "system": "/system [TEXT]", "reset": "/reset", "regenerate": "/regenerate",
    "set": "/set [KEY VALUE]", "save": "/save NAME", "load": "/load NAME", "fork": "/fork NAME",
    "sessions": "/sessions", "exit": "/exit",
}  # fmt: skip


def described(said: Said) -> str:
    """`84 tokens  41.2 tokens/s  96 of 120 read before`"""
    parts = [f"{said.tokens} token{'' if said.tokens == 1 else 's'}"]
    if said.rate:
        parts.append(f"{format_count(said.rate)} tokens/s")
    if said.prompt:
        parts.append(f"read {said.prompt - said.cached}, {said.cached} known" if said.cached else f"read {said.prompt}")
    if said.reason not in ("stop", "length"):
        parts.append("stopped")
    elif said.reason == "length":
        parts.append("cut at the most tokens")
    return "  ".join(parts)


def changed(asked: Asked, key: str, value: str) -> Asked:
    """`asked` with one setting changed; InputError for one that is not there or cannot be so."""
    key = key.strip().replace("-", "_")
    known = [name for name in SamplingParams.model_fields if name != "logit_bias"]
    if key not in (*known, SEED, COUNT):
        raise unknown("setting", key, [*known, SEED, COUNT])
    if not value:
        raise InputError(f"{key} wants a value", f"such as /set {key} {EXAMPLES.get(key, '1')}")
    if key in (SEED, COUNT):
        if key == SEED and value in ("none", "chance"):
            return replace(asked, seed=None)
        if not value.isascii() or not value.isdigit() or int(value) > 2**62 or (key == COUNT and int(value) == 0):
            raise InputError(f"{key} is a whole number, not {value}", f"such as /set {key} {EXAMPLES[key]}")
        return replace(asked, count=int(value)) if key == COUNT else replace(asked, seed=int(value))
    return replace(asked, sampling=sampled(asked.sampling.model_dump() | {key: value}, spelled=str))


EXAMPLES = {SEED: "7", COUNT: "200", "temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.05"}


def _piped_lines() -> Iterator[str]:
    """The lines of stdin, without their ends."""
    while True:
        with interruptible_input():
            line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n").removesuffix("\r")


def _one(rest: str, command: str) -> str:
    if not rest or " " in rest:
        raise InputError(f"/{command} wants one name", f"such as /{command} evening")
    return rest


def _editing(words: list[str]) -> bool:
    """Editing of lines, their history over days, and completion of commands, where this Python has them."""
    try:
        import readline
    except ImportError:
        return False
    import atexit

    from synthe_core.hardware.probe import cache_dir

    history = Path(cache_dir()) / "chat_history"
    try:
        history.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(history)
    except OSError:
        pass
    readline.set_history_length(2000)

    def keep() -> None:
        try:
            readline.write_history_file(history)
        except OSError:
            return

    atexit.register(keep)
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, state: [*(w for w in words if text and w.startswith(text)), None][state])
    readline.parse_and_bind("tab: complete")
    return True
