"""The parameters that requests can have, by API: what OpenAI and vLLM know.

Sources: OpenAI's API reference (https://platform.openai.com/docs/api-reference, as openai-python
3.54 has it; a test compares), and vLLM's request classes (vllm/entrypoints/openai/*/protocol.py
and vllm/entrypoints/pooling/*/protocol.py, late 2026) with the names that its earlier versions had.
What only another server knows goes into `extra_body`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_ALIKE = 0.7  # as a ratio; less is chance


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ASKED = _names("model messages prompt input stream stream_options")
"""Parameters that set the content and streaming: refused for jobs, which derive them from rows."""

_SAMPLING = _names(
    """
    frequency_penalty logit_bias logprobs max_tokens n presence_penalty seed stop temperature top_p
    user
    allowed_token_ids bad_words ignore_eos include_stop_str_in_output length_penalty
    logprob_token_ids min_p min_tokens prompt_logprobs repetition_detection repetition_penalty
    skip_special_tokens spaces_between_special_tokens stop_token_ids thinking_token_budget top_k
    truncate_prompt_tokens truncation_side use_beam_search watermarking
    """
)
_OF_VLLM = _names(
    """
    add_special_tokens cache_salt ec_transfer_params echo kv_transfer_params priority request_id
    response_format return_mm_kwargs return_token_ids return_token_offsets
    return_tokens_as_token_ids routed_experts_prompt_start session_id stream_interval
    structured_outputs vllm_xargs
    best_of early_stopping guided_choice guided_decoding_backend guided_grammar guided_json
    guided_regex guided_whitespace_pattern logits_processors structural_tag
    """
)
_TEMPLATES = _names(
    """
    add_generation_prompt chat_template chat_template_kwargs continue_final_message documents
    media_io_kwargs mm_processor_kwargs
    """
)
CHAT = (
    _SAMPLING
    | _OF_VLLM
    | _TEMPLATES
    | _names(
        """
    audio function_call functions max_completion_tokens metadata modalities moderation
    parallel_tool_calls prediction prompt_cache_key prompt_cache_options prompt_cache_retention
    reasoning_effort safety_identifier service_tier store tool_choice tools top_logprobs verbosity
    web_search_options
    include_reasoning return_prompt_text
    """
    )
)
COMPLETIONS = _SAMPLING | _OF_VLLM | _names("prompt_embeds suffix")
EMBEDDINGS = (
    _names(
        """
    dimensions encoding_format user
    add_special_tokens cache_salt embed_dtype endianness mm_processor_kwargs padding priority
    request_id truncate_prompt_tokens truncation_side use_activation
    additional_data normalize
    """
    )
    | _TEMPLATES
)
RESPONSES = _names(
    """
    access_programs background background_options context_management conversation image include
    instructions max_output_tokens max_tool_calls metadata moderation parallel_tool_calls
    previous_response_id prompt_cache_key prompt_cache_options prompt_cache_retention reasoning
    safety_identifier service_tier store temperature text tool_choice tools top_logprobs top_p
    truncation user
    cache_salt enable_response_messages ignore_eos include_stop_str_in_output logit_bias
    mm_processor_kwargs previous_input_messages previous_response priority repetition_penalty
    request_id seed skip_special_tokens stop structured_outputs top_k vllm_xargs
    """
)
ALL = CHAT | COMPLETIONS | EMBEDDINGS | RESPONSES


_ONE_LIMIT = _names("max_tokens max_completion_tokens max_output_tokens max_new_tokens n_predict")
"""Names for the token limit of an answer, in APIs and programs."""


def meant(name: str, known: Iterable[str]) -> str | None:
    """The known parameter that this name is probably a misspelling or a synonym of."""
    same = sorted(_ONE_LIMIT & {*known}, reverse=True) if name in _ONE_LIMIT else []
    close = same or difflib.get_close_matches(name, sorted(known), 1, _ALIKE)
    return close[0] if close else None
