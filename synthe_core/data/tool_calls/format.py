"""The formats in which models write calls of tools, recognized by their chat templates."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal


@dataclass(frozen=True)
class ToolFormat:
    """How a model writes its calls.

    name:      of the format.
    native:    whether the chat template writes tools, calls and results itself; otherwise `in_plain_messages` does.
    opening:   what stands before the first call. "" where calls begin with `{` at the beginning of the answer.
    closing:   what stands after each call.
    between:   what stands between two calls; None where an answer has one call at most.
    arguments: the key of the arguments.
    in_list:   whether the calls are the elements of one JSON list.
    style:     `json`: a JSON object with name and arguments. `named`: the name, a mark, and a JSON object of arguments.
               `xml`: tags. `pythonic`: calls as Python writes them, in a list.
    id_size:   the length of the ids, of letters and digits, that the template demands; 0 for any id.
    """

    name: str
    native: bool
    opening: str
    closing: str = ""
    between: str | None = None
    arguments: str = "arguments"
    in_list: bool = False
    id_size: int = 0
    style: Literal["json", "named", "xml", "pythonic"] = "json"

    @property
    def anchored(self) -> bool:
        """Whether calls stand at the beginning of an answer, with no mark before them."""
        return not self.opening

    @property
    def head(self) -> str:
        """How every answer with calls begins where they have no mark."""
        return "[" if self.style == "pythonic" else '{"name": "'


HERMES = ToolFormat("hermes", True, "<tool_call>\n", "\n</tool_call>", "\n<tool_call>\n")
MISTRAL = ToolFormat("mistral", True, "[TOOL_CALLS]", between=", ", in_list=True, id_size=9)
MISTRAL_ARGS = ToolFormat("mistral-args", True, "[TOOL_CALLS]", between="[TOOL_CALLS]", id_size=9, style="named")
ARGS = "[ARGS]"
"""The mark between name and arguments in the style `named`."""
QWEN_XML = ToolFormat("qwen-xml", True, HERMES.opening, HERMES.closing, HERMES.between, style="xml")
PYTHONIC = ToolFormat("pythonic", True, "", in_list=True, style="pythonic")
LLAMA = ToolFormat("llama", True, "", arguments="parameters")
JSON = ToolFormat("json", True, "")
PLAIN = ToolFormat("plain", False, HERMES.opening, HERMES.closing, HERMES.between)
"""The format of Hermes and Qwen, for templates that know no tools."""


@lru_cache
def tool_format(template: str | None) -> ToolFormat:
    """The format of a model with this chat template.

    `<tool_call>` in it: Hermes, Qwen; with `<function=`: Qwen3-Coder. `[TOOL_CALLS]`: Mistral; with `[ARGS]`: of its
    tokenizers from version 11 on. `[func_name`, of its instructions: Llama 3.2 and 4. `"parameters"` beside `name`:
    Llama 3. Another template that writes tools and calls: JSON objects, as Llama's with `arguments`. None of these:
    PLAIN.
    """
    if template is None or "tools" not in template or "tool_calls" not in template:
        return PLAIN
    if "<tool_call>" in template:
        return QWEN_XML if "<function=" in template else HERMES
    if "[TOOL_CALLS]" in template:
        return MISTRAL_ARGS if ARGS in template else MISTRAL
    if "[func_name" in template:
        return PYTHONIC
    return LLAMA if '"parameters": ' in template else JSON
