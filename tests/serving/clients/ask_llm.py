"""The library of the program `llm`: prompts, streams, conversations and schemas, by its extra-openai-models.yaml."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

folder = Path(tempfile.mkdtemp())
os.environ["LLM_USER_PATH"] = str(folder)

from common import KEY, MODEL, SHAPE, URL, check_shape  # noqa: E402

(folder / "extra-openai-models.yaml").write_text(
    f"- model_id: synthe\n  model_name: {MODEL}\n  api_base: {URL}\n  supports_schema: true\n"
    f"- model_id: text\n  model_name: {MODEL}\n  api_base: {URL}\n  completion: true\n"
)

import llm  # noqa: E402

model = llm.get_model("synthe")
model.key = KEY
reply = model.prompt("hello", system="be brief", max_tokens=6, stream=False)
assert reply.text() is not None and reply.usage().output == 6
assert "".join(model.prompt("hello", max_tokens=6, stream=True)) is not None
conversation = model.conversation()
conversation.prompt("hello", max_tokens=6, stream=False).text()
assert conversation.prompt("again", max_tokens=6, stream=False).usage().input > reply.usage().input
check_shape(model.prompt("a place", schema=SHAPE, max_tokens=60, stream=False).text())
text = llm.get_model("text")
text.key = KEY
assert isinstance(text.prompt("a", max_tokens=4, stream=False).text(), str)
print("ok")
