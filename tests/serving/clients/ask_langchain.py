"""langchain-openai: chats, streams, history, structured output, embeddings, tools."""

from __future__ import annotations

from common import KEY, MODEL, SHAPE, URL, check_shape, check_unit
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
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
tool = {"type": "function", "function": {"name": "place", "parameters": SHAPE}}
calling = ChatOpenAI(model=MODEL, base_url=URL, api_key=KEY, max_retries=0, max_tokens=300)
answer = calling.bind_tools([tool], tool_choice="place", parallel_tool_calls=False).invoke(messages)
(call,) = answer.tool_calls
check_shape(call["args"])
assert isinstance(
    chat.bind_tools([tool]).invoke([*messages, answer, ToolMessage("1", tool_call_id=call["id"])]), AIMessage
)
check_shape(calling.with_structured_output({"title": "place", **SHAPE}, method="function_calling").invoke(messages))
print("ok")
