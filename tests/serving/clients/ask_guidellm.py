"""guidellm: its benchmark of chats and of completions, with the requests that it sends by default."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

from common import MODEL, URL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocabulary, []))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.decoder = decoders.ByteLevel()
PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained("tokenizer")


async def run(*command: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 140)
    finally:
        if process.returncode is None:
            process.kill()
    assert process.returncode == 0, output.decode()[-2500:]


def bench(path: str, profile: str) -> None:
    """A benchmark whose every request must succeed."""
    output = Path("report.json")
    settings = {
        "--backend": f"kind=openai_http,target={URL.removesuffix('/v1')},model={MODEL},request_format={path}",
        "--profile": f"kind={profile}",
        "--constraint": "kind=max_requests,count=3",
        "--tokenizer": "kind=huggingface_auto,model=tokenizer",
        "--data": "kind=synthetic_text,prompt_tokens=24,output_tokens=6",
        "--output": f"kind=json,path={output}",
    }
    command = [sys.executable, "-m", "guidellm", "run", "--disable-console"]
    command += [part for pair in settings.items() for part in pair]
    asyncio.run(run(*command))
    for benchmark in json.loads(output.read_text())["benchmarks"]:
        totals = benchmark["metrics"]["request_totals"]
        assert totals["successful"] == 3 and not totals["errored"], (profile, totals)


bench("/v1/completions", "synchronous")
for profile in (
    "synchronous",
    "concurrent,streams=2",
    "throughput,max_concurrency=16",
    "constant,rate=4",
    "poisson,rate=4",
    "sweep,sweep_size=3,max_concurrency=16",
):
    bench("/v1/chat/completions", profile)
print("ok")
