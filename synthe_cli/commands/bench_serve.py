"""`synthe bench serve`: a load test of a server."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from synthe_cli import figures
from synthe_cli.api_key import keys_in
from synthe_cli.escape import escaped
from synthe_cli.options import JsonOption
from synthe_cli.renderer import choose_renderer
from synthe_cli.signals import stop_on_signal
from synthe_core.errors import Interrupted, WorkError
from synthe_core.events import results

if TYPE_CHECKING:
    from synthe_core.benchmarks.load_test.request import RequestResult

EXAMPLES = """\
synthe bench serve --clients 64 --requests 500                     a server on this machine
synthe bench serve --clients 64 --requests 500 --check             and compare every answer with the same request alone
synthe bench serve --rate 5 --requests 200 --plot                  five requests per second, at random times
synthe bench serve --multi-turn 20 --clients 1 --requests 20       a long conversation: the cost of each turn
synthe bench serve --url http://other:8000 --model NAME --chat     any OpenAI-compatible server"""

ROWS = {"first_token": "time to first token", "between_tokens": "between tokens", "request": "whole request"}
BINS, BAR = 12, 40


def serve(
    url: Annotated[str, typer.Option("--url", metavar="URL", help="Address of the server.")] = "http://127.0.0.1:6900",
    clients: Annotated[
        int | None,
        typer.Option(
            "--clients",
            "-c",
            min=1,
            max=100_000,
            metavar="N",
            help="Concurrent clients; each waits for its answer. Default: 8.",
        ),
    ] = None,
    requests: Annotated[
        int, typer.Option("--requests", "-n", min=1, metavar="N", help="Total number of requests.")
    ] = 100,
    rate: Annotated[
        float | None,
        typer.Option("--rate", metavar="R", help="Instead of clients: R requests per second, at random times."),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", metavar="NAME", help="Model to test. Default: the server's first.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Use chat completions instead of completions.")] = False,
    prompt_tokens: Annotated[
        int,
        typer.Option("--prompt-tokens", min=1, metavar="N", help="Tokens per prompt, or per turn of a conversation."),
    ] = 64,
    output_tokens: Annotated[
        int, typer.Option("--output-tokens", min=1, metavar="N", help="Maximum number of output tokens.")
    ] = 32,
    multi_turn: Annotated[int, typer.Option("--multi-turn", min=1, metavar="K", help="Turns per conversation.")] = 1,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0, metavar="T", help="Sampling temperature. 0 is greedy.")
    ] = 0.0,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Generate the full output length (not supported by every server).")
    ] = False,
    seed: Annotated[
        int, typer.Option("--seed", min=0, metavar="N", help="Random seed of prompts, arrivals and sampling.")
    ] = 0,
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Take prompts from this text. Default: random words.")
    ] = None,
    check: Annotated[
        bool, typer.Option("--check", help="Send each request again, alone. Exit with 1 if an answer differs.")
    ] = False,
    check_against: Annotated[
        str | None,
        typer.Option("--check-against", metavar="URL", help="Like --check, with the answers of another server."),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0.1, metavar="S", help="Seconds without data after which a request fails.")
    ] = 600.0,
    api_key_file: Annotated[
        Path | None, typer.Option("--api-key-file", metavar="FILE", help="File with the server's API key.")
    ] = None,
    plot: Annotated[bool, typer.Option("--plot", help="Draw histograms of the times.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Load-test a server: time to first token, time between tokens, throughput, errors and fairness.

    Works with any OpenAI-compatible server. A request that gets 429 is sent again after the server's Retry-After; the
    wait counts. Times of failed requests are not included; the exit code is then 1. Ctrl-C shows the results so far.
    """
    from synthe_core.benchmarks.load_test.run import LoadTest, run_load_test

    options = LoadTest(
        url=url,
        requests=requests,
        clients=clients or (None if rate is not None else 8),
        rate=rate,
        model=model,
        chat=chat,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        temperature=temperature,
        seed=seed,
        turns=multi_turn,
        ignore_eos=ignore_eos,
        check=check or check_against is not None,
        against=check_against,
        data=data,
        api_key=None if api_key_file is None else keys_in(api_key_file)[0],
        timeout=timeout,
    )
    with choose_renderer(as_json) as shown, stop_on_signal("the results so far are shown") as stop:
        for result in results(run_load_test(options, stop), shown.show):
            answers: Any = result.values.pop("answers")
            shown.close()
            if as_json:
                shown.show(result)
            else:
                print(report(result.values))
                if plot:
                    print("\n" + histograms(answers))
            _judge(result.values, stop.is_set())


def _judge(values: dict[str, Any], stopped: bool) -> None:
    """Raises an error if the test was stopped, a request failed or an answer differs."""
    if stopped:
        raise Interrupted(f"stopped after {values['sent']} of {values['requests']} requests")
    if failed := sum(values["errors"].values()):
        raise WorkError(f"{failed} of {values['sent']} requests failed", "the results are those of the others")
    if values.get("different"):
        raise WorkError(
            f"{values['different']} of {values['checked']} answers differ from the same request alone",
            "the batch is not isolated, a cache is wrong, or rounding decided between two tokens",
        )


def report(values: dict[str, Any]) -> str:
    """The results as a table and a few lines."""
    rows = [
        [label, *(latency(values[key][name]) for name in ("p50", "p90", "p99", "max"))] for key, label in ROWS.items()
    ]
    lines = [figures.table(["", "p50", "p90", "p99", "max"], rows), ""]
    each = values["per_client"]
    known = not math.isnan(values["cached_share"])
    pairs = [
        ("requests", f"{values['answered']:,} completed in {figures.duration(values['seconds'])}"),
        ("", f"{values['requests_per_second']:.3g} per second" if values["answered"] else ""),
        ("output", f"{values['output_tokens']:,} tokens"),
        ("", f"{values['output_tokens_per_second']:.4g} tok/s" if values["output_tokens"] else ""),
        ("prompts", f"{values['prompt_tokens']:,} tokens" if known else "not reported by the server"),
        ("", f"{values['cached_share']:.1%} cached" if known else ""),
        ("per client", f"{each['median']:.3g} tok/s" if values["output_tokens"] else ""),
        (
            "",
            f"slowest {each['slowest']:.3g}, fastest {each['fastest']:.3g}" if values["output_tokens"] else "",
        ),
        ("rejected (429)", f"{values['turned_away']:,}, sent again" if values["turned_away"] else ""),
        *(("failed", f"{count:,}  {escaped(kind)}") for kind, count in values["errors"].items()),
        ("checked", _checked(values)),
    ]
    text_lines: list[str] = []
    for label, text in pairs:
        if text and label:
            text_lines.append(f"{label:<21}{text}")
        elif text:
            text_lines[-1] += f", {text}"
    lines += text_lines
    if "example" in values:
        lines += [f"  {key:<8}{json.dumps(text)}" for key, text in values["example"].items()]
    if "turns" in values:
        lines += ["", _turns(values["turns"])]
    return "\n".join(lines)


def _checked(values: dict[str, Any]) -> str:
    if "checked" not in values:
        return ""
    same = "all identical, token by token" if not values["different"] else f"{values['different']:,} DIFFER"
    return f"{values['checked']:,} sent again alone, {same}"


def _turns(turns: list[dict[str, Any]]) -> str:
    """The cost of each turn of a conversation."""
    rows = [
        [str(t["turn"]), f"{t['prompt']:,.0f}", f"{t['read']:,.0f}", latency(t["first_token"])]
        for t in turns
        if t["answered"]
    ]
    return figures.table(["turn", "prompt tokens", "not cached", "time to first token"], rows, left=0)


def latency(seconds: float) -> str:
    """0.01234 -> 12.3 ms."""
    if not math.isfinite(seconds):
        return "-"
    return f"{seconds * 1000:.3g} ms" if seconds < 0.9995 else f"{seconds:.3g} s"


def histograms(answers: Sequence[RequestResult]) -> str:
    """Histograms of the time to first token and between tokens."""
    from synthe_core.benchmarks.load_test.figures import first_tokens, gaps

    good = [answer for answer in answers if answer.error is None]
    parts = [(ROWS["first_token"], first_tokens(good)), (ROWS["between_tokens"], gaps(good))]
    return "\n\n".join(_bars(label, values) for label, values in parts if values)


def _bars(label: str, values: Sequence[float]) -> str:
    """A histogram with logarithmic bins."""
    low, high = max(min(values), 1e-5), max(values)
    factor = (high / low) ** (1 / BINS) if high > low else 1.0
    counts = [0] * BINS
    for value in values:
        index = int(math.log(max(value, low) / low) / math.log(factor)) if factor > 1 else 0
        counts[min(index, BINS - 1)] += 1
    most = max(counts)
    block = "█" if (sys.stdout.encoding or "").lower().startswith("utf") else "#"
    width = max(10, min(BAR, shutil.get_terminal_size().columns - 30))
    lines = [label]
    for number, count in enumerate(counts):
        bar = block * math.ceil(width * count / most)
        lines.append(f"{'from ' + latency(low * factor**number):>14}  {bar} {count:,}".rstrip())
    return "\n".join(lines)
