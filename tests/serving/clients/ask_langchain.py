"""langchain-openai: chats, streams, history, structured output, embeddings; tools are refused in words."""

from __future__ import annotations

import openai
from common import KEY, MODEL, SHAPE, URL, check_shape, check_unit, refused
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings

chat = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_retries=0, max_tokens=6, seed=2, stream_usage=True)
messages = [SystemMessage("be brief"), HumanMessage("hello")]
reply = chat.invoke(messages)
assert isinstance(reply, AIMessage) and reply.usage_metadata["output_tokens"] == 6
again = [*messages, reply, HumanMessage("again")]
whole = chat.invoke(again).content
assert "".join(chunk.content for chunk in chat.stream(again)) == whole
parts = HumanMessage([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}])
assert chat.invoke([parts]).content is not None
longer = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_retries=0, max_tokens=60)
shaped = longer.with_structured_output({"title": "place", **SHAPE}, method="json_schema")
check_shape(shaped.invoke(messages))
embeddings = OpenAIEmbeddings(model=MODEL, base_url=URL, api_key=KEY, check_embedding_ctx_length=False)
for vector in embeddings.embed_documents(["the sea", "rain"]):
    check_unit(vector)
assert isinstance(OpenAI(model=MODEL, base_url=URL, api_key=KEY, max_tokens=4).invoke("a"), str)
tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
refused(openai.BadRequestError, "tools are not supported yet", lambda: chat.bind_tools([tool]).invoke(messages))
print("ok")
