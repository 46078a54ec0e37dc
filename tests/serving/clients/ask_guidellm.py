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


for path in ("/v1/chat/completions", "/v1/completions"):
    output = Path("report.json")
    settings = {
        "--backend": f"kind=openai_http,target={URL.removesuffix('/v1')},model={MODEL},request_format={path}",
        "--profile": "kind=synchronous",
        "--constraint": "kind=max_requests,count=3",
        "--tokenizer": "kind=huggingface_auto,model=tokenizer",
        "--data": "kind=synthetic_text,prompt_tokens=24,output_tokens=6",
        "--output": f"kind=json,path={output}",
    }
    command = [sys.executable, "-m", "guidellm", "run", "--disable-console"]
    command += [part for pair in settings.items() for part in pair]
    asyncio.run(run(*command))
    totals = json.loads(output.read_text())["benchmarks"][0]["metrics"]["request_totals"]
    assert totals["successful"] == 3 and not totals["errored"], totals
print("ok")
