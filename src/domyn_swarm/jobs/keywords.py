"""What Python's callers may give by name, with types: editors complete it, and the reference of the
site is made of it. What is given is checked where it is used, by `options`, `naming` and `running`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from domyn_swarm.batch.outcomes.rows import RowError
from domyn_swarm.batch.output.schema import Declared
from domyn_swarm.jobs.naming import Kept
from domyn_swarm.jobs.progress_display import SettledRow
from domyn_swarm.jobs.run_options import KeepingKeywords, ReadingKeywords


class OptionKeywords(KeepingKeywords, total=False):
    """Options of every job: how it goes about its rows. Left out, or None: as usual."""

    keep: Sequence[Kept] | Kept
    """Further columns: `finish_reason`, `verdict`, `usage`, `latency`."""


class RequestKeywords(TypedDict, total=False):
    """Parameters of requests that OpenAI's or vLLM's API knows, but for `n`, which
    `MultiChatCompletionJob` has; `extra_body` takes what only your server knows.
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
    """What every job takes besides its columns."""


class NamedKeywords(SettingKeywords, total=False):
    """Names for output columns, and settings."""

    output_columns: Sequence[str] | str | None
    """Names for the output columns, in their order."""
    output_cols: Sequence[str] | str | None
    """The same."""


class OutputKeywords(NamedKeywords, total=False):
    """What comes out. What the job itself answers decides which shapes are possible."""

    output_schema: Declared | None
    """The output columns: names, names with types, or a pydantic model."""


class CopyKeywords(OutputKeywords, total=False):
    """What a job may be called with, to be the same job with these set."""

    input_columns: Sequence[str] | str | None
    """What a row is made of."""


class ShapedPromptKeywords(NamedKeywords, total=False):
    """What the built-in jobs take that ask with a prompt, or with the text or the messages of a
    column.
    """

    prompt: str | None
    """A Jinja template over the row's columns, instead of the input column."""
    system: str | None
    """A template for the system message."""
    param_columns: Sequence[str] | Mapping[str, str]
    """Columns that hold parameters of the request, row by row."""
    input_columns: Sequence[str] | str | None
    """What a row is made of. The first is what is asked where there is no `prompt`."""


class PromptKeywords(ShapedPromptKeywords, OutputKeywords, total=False):
    """The same, of jobs whose `output_schema` is no argument of their own."""


class RunKeywords(ReadingKeywords, total=False):
    """How `run` and `arun` go about it, beside the job's own options."""

    tag: str | None
    """Keeps apart what is otherwise the same job."""
    checkpoint: bool
    """False: leave nothing behind, and go on with nothing."""
    checkpoint_dir: str | Path | None
    """Where answers are kept, instead of `$DOMYN_SWARM_HOME/checkpoints`."""
    resume: bool
    """False: ask every row again. What was answered stays for other jobs that ask the same."""
    retry_failed: bool
    """Ask rows again that an earlier run gave up, beside those that were never asked."""
    retry_class: str | Sequence[str]
    """Likewise, by what their answers are: `"cut"`, `["empty", "refused"]`, …"""
    limit: int | None
    """Only the first so many rows."""
    progress: bool
    """Show how far it is: a bar in a notebook, a line in a terminal; a log gets messages alone."""
    on_progress: Callable[[int, int | None], None] | None
    """Called with the rows that are settled, and all rows; after each batch."""
    on_batch: Callable[[list[SettledRow]], None] | None
    """Called with rows that have just been kept."""
    on_row_error: Callable[[int, RowError], None] | None
    """Called with the position of a row that was given up, and why."""
    on_cancel: Callable[[], None] | None
    """Called when the run is told to stop before its end."""
