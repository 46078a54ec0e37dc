"""How long a token takes over HTTP and in the bare engine, in turns: `python -m tests.serving.measure_served MODEL`.

[--rows 1,8,32] [--threads 1] [--turns 7] [--tokens 60]. Greedy chat completions that stream, of a model without a chat
template completions, from a client in a process of its own. Prints milliseconds of a step of both, and the median of
the turns' ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from statistics import median

import torch

from synthe_core.data import chat_template
from synthe_core.hardware.mkl import request_strict_mode
from synthe_core.inference.async_engine import AsyncEngine
from synthe_core.inference.engine import Engine
from synthe_core.inference.loaded_model import LoadedModel
from synthe_core.inference.request import Request
from synthe_core.inference.sampling_params import SamplingParams
from synthe_core.interop.load import load_model
from synthe_core.serving.api.server import Server
from synthe_core.serving.api.settings import Settings, silent
from tests.processes import run_program

MESSAGES = [{"role": "user", "content": "Tell me a long story about the sea and a lighthouse."}]
CLIENT = """
import http.client, json, sys, threading, time
host, port, rows, body, path = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], sys.argv[5]
times = [[] for _ in range(rows)]
def read(row):
    connection = http.client.HTTPConnection(host, port)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    while line := answer.readline():
        if line.startswith(b"data:"):
            times[row].append(time.perf_counter())
threads = [threading.Thread(target=read, args=(row,)) for row in range(rows)]
[each.start() for each in threads], [each.join() for each in threads]
print(json.dumps([(each[-3] - each[3]) / (len(each) - 6) for each in times]))
"""


def prompt_of(model: LoadedModel) -> str:
    if model.tokenizer.chat_template is None:
        return MESSAGES[0]["content"]
    return chat_template.render(model.tokenizer, MESSAGES)


def bare(model: LoadedModel, rows: int, count: int) -> float:
    """Milliseconds of a step."""
    engine = Engine([model], max_num_seqs=rows, cache_bytes=0, max_state_bytes=1 << 40)
    prompt = tuple(model.tokenizer.encode_marked(prompt_of(model)))
    greedy = SamplingParams(temperature=0)
    request = Request(model.name, prompt, count, greedy, return_logprob=False, ignore_eos=True)
    sequences = [engine.add_request(request, lambda output: False) for _ in range(rows)]
    while not all(each.output_token_ids for each in sequences):
        engine.step()
    steps = []
    while engine.has_unfinished:
        start = time.perf_counter()
        engine.step()
        steps.append(time.perf_counter() - start)
    return 1e3 * sum(steps[2:-2]) / len(steps[2:-2])


def served(server: Server, model: LoadedModel, rows: int, count: int) -> float:
    """Milliseconds between two tokens of a stream."""
    settings = {"max_tokens": count, "temperature": 0, "ignore_eos": True, "stream": True}
    is_chat = model.tokenizer.chat_template is not None
    path, text = ("chat/completions", MESSAGES) if is_chat else ("completions", prompt_of(model))
    body = json.dumps({"model": model.name, "messages" if is_chat else "prompt": text, **settings})
    command = [sys.executable, "-c", CLIENT, server.host, str(server.port), str(rows), body, f"/v1/{path}"]
    gaps = json.loads(run_program(command, check=True, capture_output=True, text=True).stdout)
    return 1e3 * sum(gaps) / rows


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--rows", default="1,8,32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=60)
    options = parser.parse_args()
    request_strict_mode()
    torch.set_num_threads(options.threads)
    model = load_model(options.model, "model", weights="auto")
    with AsyncEngine([model], cache_bytes=0) as engine, Server(engine, Settings(log=silent)) as server:
        for rows in map(int, options.rows.split(",")):
            pairs = [
                (bare(model, rows, options.tokens), served(server, model, rows, options.tokens))
                for _ in range(options.turns)
            ]
            ratios = [alone / over_http for alone, over_http in pairs]
            alone, over_http = (median(each) for each in zip(*pairs, strict=True))
            print(
                f"{rows} streams, {options.threads} threads: bare {alone:.1f} ms, served {over_http:.1f} ms, bare of "
                f"served {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})",
                flush=True,
            )
        server.stop(1)


if __name__ == "__main__":
    main()
