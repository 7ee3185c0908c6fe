"""Typed keywords of the Python API, for editors' completion and the reference of the site. Values
are checked where they are used, by `run_options`, `naming` and `running`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from domyn_swarm.batch.outcomes.row_outcomes import RowError
from domyn_swarm.batch.output.output_schema import Declared
from domyn_swarm.jobs.naming import Kept
from domyn_swarm.jobs.progress_display import SettledRow
from domyn_swarm.jobs.run_options import KeepingKeywords, ReadingKeywords


class OptionKeywords(KeepingKeywords, total=False):
    """Options of every job: how it processes its rows. Omitted or None: the default."""

    keep: Sequence[Kept] | Kept
    """Further columns: `finish_reason`, `verdict`, `usage`, `latency`."""


class RequestKeywords(TypedDict, total=False):
    """Parameters of requests that OpenAI's or vLLM's API knows, except `n`, which
    `MultiChatCompletionJob` has; `extra_body` takes parameters that only your server knows.
    """

    extra_body: Mapping[str, Any] | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    max_completion_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    presence_penalty: float | None
    frequency_penalty: float | None
    top_k: int | None
    min_p: float | None
    min_tokens: int | None
    repetition_penalty: float | None
    logprobs: bool | int | None
    top_logprobs: int | None
    tools: Sequence[Mapping[str, Any]]
    tool_choice: Any
    response_format: Any
    reasoning_effort: str | None
    chat_template_kwargs: Mapping[str, Any] | None
    dimensions: int | None
    encoding_format: Literal["float", "base64"] | None
    user: str
    ignore_eos: bool
    skip_special_tokens: bool
    length_penalty: float | None
    stop_token_ids: Sequence[int] | None
    logit_bias: Mapping[str, float] | None
    verbosity: str | None
    parallel_tool_calls: bool | None
    suffix: str | None
    best_of: int | None
    truncate_prompt_tokens: int | None
    add_special_tokens: bool
    echo: bool | None
    priority: int | None
    use_beam_search: bool
    chat_template: str | None
    include_reasoning: bool
    guided_regex: str | None
    guided_choice: Sequence[str] | None
    guided_grammar: str | None
    structured_outputs: Any
    thinking_token_budget: int | None
    add_generation_prompt: Any
    additional_data: Any
    allowed_token_ids: Any
    audio: Any
    bad_words: Any
    cache_salt: Any
    continue_final_message: Any
    documents: Any
    early_stopping: Any
    ec_transfer_params: Any
    embed_dtype: Any
    endianness: Any
    function_call: Any
    functions: Any
    guided_decoding_backend: Any
    guided_json: Any
    guided_whitespace_pattern: Any
    include_stop_str_in_output: Any
    kv_transfer_params: Any
    logits_processors: Any
    logprob_token_ids: Any
    media_io_kwargs: Any
    metadata: Any
    mm_processor_kwargs: Any
    modalities: Any
    moderation: Any
    normalize: Any
    padding: Any
    prediction: Any
    prompt_cache_key: Any
    prompt_cache_options: Any
    prompt_cache_retention: Any
    prompt_embeds: Any
    prompt_logprobs: Any
    repetition_detection: Any
    request_id: Any
    return_mm_kwargs: Any
    return_prompt_text: Any
    return_token_ids: Any
    return_token_offsets: Any
    return_tokens_as_token_ids: Any
    routed_experts_prompt_start: Any
    safety_identifier: Any
    service_tier: Any
    session_id: Any
    spaces_between_special_tokens: Any
    store: Any
    stream_interval: Any
    structural_tag: Any
    truncation_side: Any
    use_activation: Any
    vllm_xargs: Any
    watermarking: Any
    web_search_options: Any


class SettingKeywords(OptionKeywords, RequestKeywords, total=False):
    """Arguments of every job besides its columns."""


class NamedKeywords(SettingKeywords, total=False):
    """Names for output columns, and settings."""

    output_columns: Sequence[str] | str | None
    """Names for the output columns, in their order."""
    output_cols: Sequence[str] | str | None
    """The same."""


class OutputKeywords(NamedKeywords, total=False):
    """The output. Which shapes are possible depends on the job."""

    output_schema: Declared | None
    """The output columns: names, names with types, or a pydantic model."""


class CopyKeywords(OutputKeywords, total=False):
    """Arguments of a call of a job, which returns the same job with these set."""

    input_columns: Sequence[str] | str | None
    """The columns of an item."""


class ShapedPromptKeywords(NamedKeywords, total=False):
    """Arguments of the built-in jobs that send a prompt, or the text or the messages of a
    column.
    """

    prompt: str | None
    """A Jinja template over the row's columns, instead of the input column."""
    system: str | None
    """A template for the system message."""
    param_columns: Sequence[str] | Mapping[str, str]
    """Columns that hold parameters of the request, row by row."""
    input_columns: Sequence[str] | str | None
    """The columns of an item. The first one is sent if there is no `prompt`."""


class PromptKeywords(ShapedPromptKeywords, OutputKeywords, total=False):
    """The same, for jobs whose `output_schema` is not an argument."""


class RunKeywords(ReadingKeywords, total=False):
    """Settings of `run` and `arun`, besides the job's own options."""

    tag: str | None
    """Keeps otherwise identical jobs apart."""
    checkpoint: bool
    """False: keep no checkpoint, and use none."""
    checkpoint_dir: str | Path | None
    """The folder of the checkpoints, instead of `$DOMYN_SWARM_HOME/checkpoints`."""
    resume: bool
    """False: send every row again. Existing answers stay for other jobs with the same requests."""
    retry_failed: bool
    """Send rows again that failed in an earlier run, besides those without a result."""
    retry_class: str | Sequence[str]
    """The same, by the class of their answers: `"cut"`, `["empty", "refused"]`, …"""
    limit: int | None
    """Process only the first N rows."""
    progress: bool
    """Show the progress: a bar in a notebook, a line in a terminal; a log gets only messages."""
    on_progress: Callable[[int, int | None], None] | None
    """Called with the number of settled rows, and of all rows, after each batch."""
    on_batch: Callable[[list[SettledRow]], None] | None
    """Called with rows that were just kept."""
    on_row_error: Callable[[int, RowError], None] | None
    """Called with the position of a row that failed permanently, and the error."""
    on_cancel: Callable[[], None] | None
    """Called when the run is stopped before its end."""
