"""The loop of `synthe chat`: it reads a line, answers it or runs its /command, and prints the result."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from synthe_cli.escape import escaped, json_text, printable
from synthe_cli.options import sampled
from synthe_cli.signals import interruptible_input
from synthe_core.chat.conversation import Answer, ChatOptions, Conversation, Reply, Turn
from synthe_core.errors import InputError, SyntheError, unknown
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.units import format_count

COUNT, SEED = "tokens", "seed"


class Exit(Exception):
    """Ends the loop."""


class ChatLoop:
    """Reads lines and answers them. On a terminal it prompts and prints notices; from a pipe it prints answers only."""

    def __init__(self, conversation: Conversation, options: ChatOptions, *, as_json: bool = False) -> None:
        self.conversation, self.options, self.as_json = conversation, options, as_json
        self.terminal = sys.stdin.isatty() and sys.stdout.isatty()
        self.colored = self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.commands: dict[str, Callable[[str], None]] = {
            "help": self.help, "system": self.system, "reset": self.reset, "regenerate": self.regenerate,
            "set": self.set, "save": self.save, "load": self.load, "fork": self.fork, "sessions": self.sessions,
            "exit": self.exit,
        }  # fmt: skip

    def run(self) -> None:
        """Runs until the end of input, /exit, or Ctrl-C at the prompt. From a pipe, the first error ends it."""
        if self.terminal:
            kind = "chat" if self.conversation.has_chat_template else "no chat template: continues your text"
            self.notify(f"{escaped(self.conversation.model)}  {kind}  /help lists the commands, Ctrl-D leaves")
        for line in self.lines():
            try:
                self.handle(line)
            except Exit:
                return
            except SyntheError as error:
                if not self.terminal:
                    raise
                self.notify("\n".join(map(escaped, [*error.lines, *([error.hint] if error.hint else [])])))

    def handle(self, line: str) -> None:
        """Answers a message or runs a command. A message that starts with a slash is written with two."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, rest = line[1:].partition(" ")
            if name == "quit":
                name = "exit"
            if name not in self.commands:
                raise unknown("command", f"/{name}", [f"/{each}" for each in self.commands])
            self.commands[name](rest.strip())
        elif line.strip() or (self.terminal and not self.conversation.has_chat_template):
            self.show(self.conversation.send(line[1:] if line.startswith("//") else line, self.options))

    def lines(self) -> Iterator[str]:
        """The messages typed. A line that ends in a backslash continues on the next."""
        if not self.terminal:
            yield from _piped_lines()
            return
        has_editing = _enable_editing([f"/{name}" for name in self.commands])
        prompt = "\001\x1b[1;36m\002> \001\x1b[0m\002" if self.colored and has_editing else "> "
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
        """Streams an answer. Ctrl-C stops it, and a second Ctrl-C ends the program."""
        reply = self._stream(answer)
        if self.as_json:
            row = {
                "role": "assistant", "text": reply.text, "finish_reason": reply.reason, "tokens": reply.tokens,
                "prompt_tokens": reply.prompt, "cached_tokens": reply.cached,
                "tokens_per_second": round(reply.rate, 2), "session": self.conversation.session,
            }  # fmt: skip
            if reply.agreeing is not None:
                row["agreeing_attempts"] = reply.agreeing
            if self.conversation.retriever is not None:
                row["passages"] = _passages(self.conversation.turns[-1:])
            print(json_text(row), flush=True)
            return
        if self.terminal:
            self.notify(summary_of(reply))
        for each in _passages(self.conversation.turns[-1:]):
            cited = "  cited" if each["cited"] else ""
            self.notify(f"[{each['citation']}] {escaped(str(each['place']))}{cited}")

    def _stream(self, answer: Answer) -> Reply:
        """Prints the pieces of an answer, and passes Ctrl-C on to it. The second ends the program."""
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
                    reply: Reply = end.value
                    break
                except KeyboardInterrupt:
                    if inspect.getgeneratorstate(answer) == inspect.GEN_CLOSED:  # the answer has ended with it
                        raise
                    interrupted = True
        if not self.as_json:
            print(flush=True)
        return reply

    def notify(self, text: str) -> None:
        """Prints a notice to stderr: it is not part of the conversation."""
        text = printable(text)
        print(f"\x1b[2m{text}\x1b[0m" if self.colored else text, file=sys.stderr, flush=True)

    # Commands. The docstring of each is its help.

    def help(self, rest: str) -> None:
        """list the commands"""
        width = max(len(usage) for usage in USAGE.values())
        for name, command in self.commands.items():
            self.notify(f"{USAGE[name]:<{width}}  {inspect.getdoc(command)}")
        self.notify(
            "end a line with \\ to continue it; Ctrl-C stops an answer; type // for a message that starts with /"
        )

    def system(self, rest: str) -> None:
        """show the system prompt, or restart with this one"""
        if rest:
            self.conversation.reset(rest)
            self.notify("restarted with this system prompt")
        else:
            self.notify(self.conversation.system or "no system prompt")

    def reset(self, rest: str) -> None:
        """delete the conversation and restart"""
        self.conversation.reset()
        self.notify("restarted")

    def regenerate(self, rest: str) -> None:
        """generate the last answer again"""
        self.show(self.conversation.regenerate(self.options))

    def set(self, rest: str) -> None:
        """show the sampling parameters, or change one: /set temperature 0.7"""
        if not rest:
            values = {**self.options.sampling.model_dump(), SEED: self.options.seed, COUNT: self.options.max_tokens}
            known = {key: "random" if value is None else value for key, value in values.items() if value != {}}
            self.notify("\n".join(f"{key} {value}" for key, value in known.items()))
            return
        key, _, value = rest.replace("=", " ").partition(" ")
        self.options = with_setting(self.options, key, value.strip())
        self.notify(f"{key} {value.strip()}")

    def save(self, rest: str) -> None:
        """save a copy of the conversation under a name"""
        self.conversation.save(_one_name(rest, "save"))
        self.notify(f"saved as {rest}; /load {rest} resumes it")

    def load(self, rest: str) -> None:
        """resume a saved conversation"""
        self.conversation.load(_one_name(rest, "load"))
        self.notify(f"resumed {rest}")
        for turn in self.conversation.turns[-1:]:
            is_chat = self.conversation.has_chat_template
            self.notify(f"> {turn.message}\n{turn.answer}" if is_chat else f"{turn.message}{turn.answer}")

    def fork(self, rest: str) -> None:
        """continue under another name; the old one is not changed"""
        old, own = self.conversation.session, self.conversation.is_temporary
        self.conversation.fork(_one_name(rest, "fork"))
        self.notify(f"continuing as {rest}" + ("" if own else f"; {old} is not changed"))

    def sessions(self, rest: str) -> None:
        """list the saved conversations"""
        current, names = self.conversation.session, sorted(self.conversation.saved_names())
        names = [f"{escaped(name)}  (current)" if name == current else escaped(name) for name in names]
        self.notify("\n".join(names) or "no saved conversations")

    def exit(self, rest: str) -> None:
        """leave"""
        raise Exit


USAGE = {
    "help": "/help", "system": "/system [TEXT]", "reset": "/reset", "regenerate": "/regenerate",
    "set": "/set [KEY VALUE]", "save": "/save NAME", "load": "/load NAME", "fork": "/fork NAME",
    "sessions": "/sessions", "exit": "/exit",
}  # fmt: skip


def _passages(turns: Sequence[Turn]) -> list[dict[str, object]]:
    """What the last of `turns` read of documents, and whether its answer cites it."""
    if not turns or not turns[-1].passages:
        return []
    from synthe_core.retrieval.prompt import cited, place_of

    used = {number for number, _ in cited(turns[-1].answer, turns[-1].passages)}
    return [
        {"citation": number, "place": place_of(each.passage), "cited": number in used, **each.passage._asdict()}
        for number, each in enumerate(turns[-1].passages, 1)
    ]


def summary_of(reply: Reply) -> str:
    """`84 tokens  41.2 tok/s  prompt 120 (96 cached)`"""
    parts = [f"{reply.tokens} token{'' if reply.tokens == 1 else 's'}"]
    if reply.agreeing is not None:
        parts.append(f"{reply.agreeing} attempt{'' if reply.agreeing == 1 else 's'} with this answer")
    if reply.rate:
        parts.append(f"{format_count(reply.rate)} tok/s")
    if reply.prompt:
        parts.append(f"prompt {reply.prompt}" + (f" ({reply.cached} cached)" if reply.cached else ""))
    if reply.reason not in ("stop", "length"):
        parts.append("stopped")
    elif reply.reason == "length":
        parts.append("reached the token limit")
    return "  ".join(parts)


def with_setting(options: ChatOptions, key: str, value: str) -> ChatOptions:
    """The options with one of them changed. Raises InputError for an unknown name or an invalid value."""
    key = key.strip().replace("-", "_")
    known = [name for name in SamplingParams.model_fields if name != "logit_bias"]
    if key not in (*known, SEED, COUNT):
        raise unknown("setting", key, [*known, SEED, COUNT])
    if not value:
        raise InputError(f"{key} needs a value", f"such as /set {key} {EXAMPLES.get(key, '1')}")
    if key in (SEED, COUNT):
        if key == SEED and value in ("none", "random"):
            return replace(options, seed=None)
        if not value.isascii() or not value.isdigit() or int(value) > 2**62 or (key == COUNT and int(value) == 0):
            raise InputError(f"{key} must be a whole number, not {value}", f"such as /set {key} {EXAMPLES[key]}")
        return replace(options, max_tokens=int(value)) if key == COUNT else replace(options, seed=int(value))
    return replace(options, sampling=sampled(options.sampling.model_dump() | {key: value}, spelled=str))


EXAMPLES = {SEED: "7", COUNT: "200", "temperature": "0.7", "top_p": "0.9", "top_k": "40", "min_p": "0.05"}


def _piped_lines() -> Iterator[str]:
    """The lines of stdin, without their ends."""
    while True:
        with interruptible_input():
            line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\n").removesuffix("\r")


def _one_name(rest: str, command: str) -> str:
    if not rest or " " in rest:
        raise InputError(f"/{command} needs one name", f"such as /{command} evening")
    return rest


def _enable_editing(words: list[str]) -> bool:
    """Turns on line editing, a history that is saved, and completion of commands, if this Python has readline."""
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

    def save() -> None:
        try:
            readline.write_history_file(history)
        except OSError:
            return

    atexit.register(save)
    readline.set_completer_delims(" ")
    readline.set_completer(lambda text, state: [*(w for w in words if text and w.startswith(text)), None][state])
    readline.parse_and_bind("tab: complete")
    return True
