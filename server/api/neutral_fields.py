"""Fields of generating requests that change no answer, and those that may only have the value which
changes none: OpenAI's hints, and what vLLM's clients send.
"""

from typing import Annotated

from pydantic import BaseModel, JsonValue

from server.api.fields import neutral


class NeutralFields(BaseModel):
    """Of `/v1/completions` and `/v1/chat/completions`."""

    # Hints, for logs, caches and dashboards of other servers: any value is as good as none.
    user: str | None = None
    metadata: dict[str, JsonValue] | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    request_id: str | None = None
    prompt_cache_retention: Annotated[JsonValue, neutral("in_memory", "in-memory", "24h")] = None

    # vLLM's, with its own defaults
    allowed_token_ids: Annotated[JsonValue, neutral()] = None
    bad_words: Annotated[JsonValue, neutral([])] = None
    cache_salt: Annotated[JsonValue, neutral()] = None
    early_stopping: Annotated[JsonValue, neutral(False)] = None
    extra_body: Annotated[JsonValue, neutral({})] = None
    guided_choice: Annotated[JsonValue, neutral()] = None
    guided_decoding_backend: Annotated[JsonValue, neutral()] = None
    guided_grammar: Annotated[JsonValue, neutral()] = None
    guided_json: Annotated[JsonValue, neutral()] = None
    guided_regex: Annotated[JsonValue, neutral()] = None
    guided_whitespace_pattern: Annotated[JsonValue, neutral()] = None
    include_stop_str_in_output: Annotated[JsonValue, neutral(False)] = None
    kv_transfer_params: Annotated[JsonValue, neutral()] = None
    length_penalty: Annotated[JsonValue, neutral(1.0, 1)] = None
    logits_processors: Annotated[JsonValue, neutral([])] = None
    priority: Annotated[JsonValue, neutral(0)] = None
    prompt_logprobs: Annotated[JsonValue, neutral()] = None
    return_token_ids: Annotated[JsonValue, neutral(False)] = None
    return_tokens_as_token_ids: Annotated[JsonValue, neutral(False)] = None
    skip_special_tokens: Annotated[JsonValue, neutral(True)] = None
    spaces_between_special_tokens: Annotated[JsonValue, neutral(True, False)] = None
    structural_tag: Annotated[JsonValue, neutral()] = None
    structured_outputs: Annotated[JsonValue, neutral()] = None
    truncate_prompt_tokens: Annotated[JsonValue, neutral()] = None
    use_beam_search: Annotated[JsonValue, neutral(False)] = None
    vllm_xargs: Annotated[JsonValue, neutral({})] = None


class NeutralCompletionFields(NeutralFields):
    """Of `/v1/completions` alone."""

    add_special_tokens: Annotated[JsonValue, neutral(True)] = None
    prompt_embeds: Annotated[JsonValue, neutral()] = None
    response_format: Annotated[JsonValue, neutral({"type": "text"})] = None
    suffix: Annotated[JsonValue, neutral("")] = None


class NeutralChatFields(NeutralFields):
    """Of `/v1/chat/completions` alone."""

    add_special_tokens: Annotated[JsonValue, neutral(False)] = None
    audio: Annotated[JsonValue, neutral()] = None
    best_of: Annotated[JsonValue, neutral(1)] = None
    echo: Annotated[JsonValue, neutral(False)] = None
    function_call: Annotated[JsonValue, neutral("none", "auto")] = None
    functions: Annotated[JsonValue, neutral([])] = None
    include_reasoning: Annotated[JsonValue, neutral(True)] = None
    media_io_kwargs: Annotated[JsonValue, neutral({})] = None
    mm_processor_kwargs: Annotated[JsonValue, neutral({})] = None
    modalities: Annotated[JsonValue, neutral(["text"])] = None
    moderation: Annotated[JsonValue, neutral()] = None
    parallel_tool_calls: Annotated[JsonValue, neutral(True, False)] = None
    prediction: Annotated[JsonValue, neutral()] = None
    prompt_cache_options: Annotated[JsonValue, neutral()] = None
    reasoning_effort: Annotated[JsonValue, neutral("none")] = None
    response_format: Annotated[JsonValue, neutral({"type": "text"})] = None
    service_tier: Annotated[JsonValue, neutral("auto", "default")] = None
    store: Annotated[JsonValue, neutral(False)] = None
    thinking_token_budget: Annotated[JsonValue, neutral()] = None
    tool_choice: Annotated[JsonValue, neutral("none", "auto")] = None
    tools: Annotated[JsonValue, neutral([])] = None
    verbosity: Annotated[JsonValue, neutral("medium")] = None
    web_search_options: Annotated[JsonValue, neutral()] = None
