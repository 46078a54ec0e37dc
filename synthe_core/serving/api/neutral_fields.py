"""Fields of OpenAI, vLLM, llama.cpp and their clients that change no answer here."""

from __future__ import annotations

from synthe_core.serving.api.body import IGNORED, Neutral, only
from synthe_core.serving.api.messages import LEGACY

ACCOUNTING: dict[str, Neutral] = dict.fromkeys(
    (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "request_id",
        "priority",
    ),
    IGNORED,
)
"""Who asks, and how the answer is paid for, found and scheduled."""

GENERATION: dict[str, Neutral] = {
    **ACCOUNTING,
    **dict.fromkeys(
        (
            "prediction",
            "cache_prompt",
            "guided_decoding_backend",
            "spaces_between_special_tokens",
            "length_penalty",
            "early_stopping",
        ),
        IGNORED,
    ),
    "use_beam_search": only(False, reason="beam search is not supported"),
    "skip_special_tokens": only(True, reason="special tokens have no text"),
    "include_stop_str_in_output": only(False, reason="a text ends before its stop string"),
    "detokenize": only(True, reason="the answer is text; /tokenize gives its tokens"),
    "return_token_ids": only(False, reason="not supported; /tokenize gives the tokens of a text"),
    "return_tokens_as_token_ids": only(False, reason="not supported; /tokenize gives the tokens of a text"),
    "prompt_logprobs": only(False, reason="not supported; /v1/completions has echo with logprobs"),
    "allowed_token_ids": only(reason="not supported; use guided_choice, guided_regex or logit_bias"),
    "bad_words": only([], reason="not supported; use logit_bias"),
    "logits_processors": only([], reason="not supported"),
    "guided_whitespace_pattern": only(reason="not supported: JSON has one space after commas and colons"),
    "kv_transfer_params": only({}, reason="not supported"),
    "vllm_xargs": only({}, reason="not supported"),
    "cache_salt": only(reason="not supported"),
    "typical_p": only(1, reason="not supported; use top_p or min_p"),
    "tfs_z": only(1, reason="not supported; use top_p or min_p"),
    "mirostat": only(0, reason="not supported; use top_p or min_p"),
}

COMPLETION: dict[str, Neutral] = {
    **GENERATION,
    "suffix": only("", reason="text in the middle is not supported"),
    "prompt_embeds": only(reason="not supported; give a text or tokens"),
}

CHAT: dict[str, Neutral] = {
    **{name: neutral for name, neutral in GENERATION.items() if name != "user"},
    "functions": only([], reason=LEGACY),
    "function_call": only("none", "auto", reason=LEGACY),
    "include_reasoning": IGNORED,
    "verbosity": only("medium", reason="not supported; ask for it in a message"),
    "modalities": only(["text"], [], reason="answers are text"),
    "audio": only(reason="answers are text"),
    "web_search_options": only(reason="web search is not supported"),
    "documents": only([], reason="not supported; put them into a message"),
    "chat_template": only(reason="the model's own is used, which chat_template_kwargs are given to"),
    "mm_processor_kwargs": only({}, reason="messages are text"),
    "echo": only(False, reason="of /v1/completions only"),
}

EMBEDDING: dict[str, Neutral] = {
    **ACCOUNTING,
    "normalize": only(True, reason="embeddings have length 1"),
    "input_type": IGNORED,
}

TOKENIZE: dict[str, Neutral] = {
    "chat_template": CHAT["chat_template"],
    "mm_processor_kwargs": CHAT["mm_processor_kwargs"],
}

SYNONYMS = {
    "max_new_tokens": "max_tokens",
    "max_output_tokens": "max_tokens",
    "n_predict": "max_tokens",
    "num_predict": "max_tokens",
    "max_length": "max_tokens",
    "min_length": "min_tokens",
    "stop_sequences": "stop",
    "end_id": "stop_token_ids",
    "eos_token_id": "stop_token_ids",
    "num_return_sequences": "n",
    "random_seed": "seed",
    "n_probs": "logprobs",
    "grammar": "guided_grammar",
    "json_schema": "response_format",
    "regex": "guided_regex",
    "frequence_penalty": "frequency_penalty",
}
