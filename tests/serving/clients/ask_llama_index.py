"""llama-index: chats, streams, history, completions, structured output, embeddings; tools are refused in words."""

from __future__ import annotations

import openai
from common import KEY, MODEL, SHAPE, URL, check_shape, check_unit, refused
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike

at = {"model": MODEL, "api_base": URL, "api_key": KEY, "max_retries": 0}
chat = OpenAILike(is_chat_model=True, max_tokens=6, additional_kwargs={"seed": 2}, **at)
messages = [ChatMessage(role="system", content="be brief"), ChatMessage(role="user", content="hello")]
reply = chat.chat(messages)
again = [*messages, reply.message, ChatMessage(role="user", content="again")]
whole = chat.chat(again).message.content
assert "".join(chunk.delta or "" for chunk in chat.stream_chat(again)) == whole
assert OpenAILike(is_chat_model=False, max_tokens=6, **at).complete("a").text is not None
schema = {"type": "json_schema", "json_schema": {"name": "place", "schema": SHAPE}}
longer = OpenAILike(is_chat_model=True, max_tokens=60, additional_kwargs={"response_format": schema}, **at)
check_shape(longer.chat(messages).message.content)
embedding = OpenAILikeEmbedding(model_name=MODEL, api_base=URL, api_key=KEY)
for vector in embedding.get_text_embedding_batch(["the sea", "rain"]):
    check_unit(vector)
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
refused(openai.BadRequestError, "tools are not supported yet", lambda: chat.chat(messages, tools=[tool]))
print("ok")
