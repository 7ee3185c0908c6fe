"""`StructuredOutputJob`: answers of a given shape, as typed columns; and the extraction of JSON
from a model's text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from importlib import import_module
from typing import Any, Literal, TypeVar, Unpack

from pydantic import BaseModel, ValidationError, create_model
from typing_extensions import override

from domyn_swarm.batch.outcomes.rows import set_aside_replies
from domyn_swarm.batch.output.schema import Declared, OutputMismatch, annotation_of, reasons
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.builtin.prompted import PromptedJob
from domyn_swarm.jobs.builtin.responses import choices
from domyn_swarm.jobs.keywords import ShapedPromptKeywords
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.openai import CHAT_PATH
from domyn_swarm.net.replies import read_reply

_Answer = TypeVar("_Answer")

_THOUGHTS = r"think(?:ing)?|thought|reason(?:ing)?|reflection"
_THOUGHT_ENDS = re.compile(rf"</(?:{_THOUGHTS})>|\[/THINK\]|<\|channel\|>final<\|message\|>", re.I)
_THOUGHT_BEGINS = re.compile(rf"<(?:{_THOUGHTS})>|\[THINK\]|<\|channel\|>analysis", re.I)
_END_TOKEN = re.compile(r"(?:<\|[^|<>]{1,40}\|>|</?s>|<eos>|<end_of_turn>|\[/?INST\])\s*\Z")
_END_TOKEN_CHARACTERS = 80
_FENCE = re.compile(r"```[\w+-]*[ \t]*\n?(.*?)```", re.DOTALL)
_BEGINS = re.compile(r"[{\[]")
_MOST_BEGINNINGS = 1000  # in texts with many braces

_decode = json.JSONDecoder().raw_decode


class SeveralAnswers(ValueError):
    """A text holds different answers of the required shape, and does not show which one counts."""


def found_answer(text: str, validate: Callable[[str], _Answer], *, cut: bool) -> _Answer:
    """The only answer of the required shape in a text.

    Args:
        text: the model's whole text.
        validate: makes the answer from JSON text.
        cut: the text was cut off: then the JSON must be all of it, since the missing part might
            have contained another answer.

    Raises:
        ValidationError: no JSON in it has the shape; the error of the likeliest.
        SeveralAnswers: the text has different ones.
    """
    try:
        return validate(text)
    except ValidationError as error:
        likeliest = error
    said = _without_thinking(text)
    for candidates in ([said], _fenced(said, alone=cut), [] if cut else _embedded(said)):
        found: list[_Answer] = []
        for candidate in candidates:
            try:
                answer = validate(candidate)
            except ValidationError as error:
                likeliest = error if _is_no_json(likeliest) else likeliest
            else:
                found += [] if answer in found else [answer]
        if len(found) > 1:
            raise SeveralAnswers(f"it holds {len(found)} different answers")
        if found:
            return found[0]
    raise likeliest


def _is_no_json(error: ValidationError) -> bool:
    return any(one["type"] == "json_invalid" for one in error.errors(include_url=False))


def _without_thinking(text: str) -> str:
    """A text without its thinking section and end tokens."""
    *_, last = [0, *(one.end() for one in _THOUGHT_ENDS.finditer(text))]
    said = text[last:]
    begun = _THOUGHT_BEGINS.search(said)  # not closed: no answer follows
    return _without_end_tokens(said if begun is None else said[: begun.start()]).strip()


def _without_end_tokens(text: str) -> str:
    while (end := _END_TOKEN.search(text[-_END_TOKEN_CHARACTERS:])) is not None:
        text = text[: len(text) - len(end[0])].rstrip()
    return text


def _fenced(text: str, *, alone: bool) -> list[str]:
    """The content of Markdown's fences. `alone`: of a fence that is the whole text."""
    return [one[1] for one in _FENCE.finditer(text) if not alone or one[0] == text]


def _embedded(text: str) -> Iterator[str]:
    """Every outermost object and list in a text."""
    at, beginnings = 0, 0
    while (begin := _BEGINS.search(text, at)) is not None and beginnings < _MOST_BEGINNINGS:
        beginnings += 1
        try:
            _, at = _decode(text, begin.start())
        except (ValueError, RecursionError):
            at = begin.start() + 1
        else:
            yield text[begin.start() : at]


_AT_ONCE = {
    ReplyVerdict.CUT: "it was cut at its token limit: max_tokens is too small",
    ReplyVerdict.REFUSED: "the model refused, or a filter took the answer",
    ReplyVerdict.TOOL_CALLS: "it is calls of tools",
}


class StructuredOutputJob(PromptedJob):
    """One answer to each conversation or prompt, as JSON of the shape of `output_schema`.

    The shape is a pydantic model, `"module:Model"`, or names with types. Its JSON schema is part of
    the request, so that a server with guided decoding can answer nothing else; the answer is
    validated, and its fields are the output columns. JSON is extracted after thinking, from fences
    and from surrounding text. An answer that does not fit is sent back with the reasons, `repairs`
    times; then it is a row error. An answer that was cut, is a refusal, or calls tools is a row
    error at once: the same request would end the same way.

    guided: how the schema is sent: `json_schema` (OpenAI's `response_format`; vLLM, llama.cpp,
        SGLang), `guided_json` (older vLLM), or `none`: as part of the prompt.
    """

    input_columns = ("messages",)
    accept = "complete"
    version = "1"

    def __init__(
        self,
        *,
        output_schema: Declared | str | None = None,
        repairs: int = 1,
        guided: Literal["json_schema", "guided_json", "none"] = "json_schema",
        **options: Unpack[ShapedPromptKeywords],
    ) -> None:
        """See the class.

        Raises:
            ConfigError: the shape is not usable, or an option is invalid.
        """
        if repairs < 0:
            raise ConfigError(f"repairs must be at least 0, not {repairs}.")
        if guided not in ("json_schema", "guided_json", "none"):
            raise ConfigError(
                f"guided is {guided!r}.", hint="It can be json_schema, guided_json or none."
            )
        declared = type(self).output_schema if output_schema is None else output_schema
        self.shape = _model_of(declared)
        self.repairs = repairs
        self.guided = guided
        super().__init__(output_schema=self.shape, **options)
        self._schema = self.shape.model_json_schema()

    @override
    def check(self) -> None:
        """Also refuses a parameter that sets the format of the answer, which
        the job sets itself.
        """
        super().check()
        for name in self._guidance():
            self._refuse_shape(name, {*self.params, *self.param_columns})

    def _refuse_shape(self, name: str, given: Collection[str]) -> None:
        if name in given:
            raise ConfigError(
                f"{type(self).__name__} sends a {name} of its own, made of output_schema; yours "
                "would be lost.",
                hint='Leave it out, or send yours alone with guided="none".',
            )

    @override
    def described(self) -> dict[str, Any]:
        return {
            **super().described(),
            "json_schema": self._schema,
            "repairs": self.repairs,
            "guided": self.guided,
        }

    @override
    async def transform_item(self, item: Any) -> BaseModel:
        """The answer as an instance of the model."""
        columns = self.columns_of(item)
        body, guidance = self.body(columns), self._guidance()
        for name in guidance:  # the row's own `extra_body` may contain it
            self._refuse_shape(name, body)
        body |= guidance
        messages = [*self._instruction(), *self.messages(columns)]
        for repair in range(self.repairs + 1):
            reply = await self.client.transport.post(CHAT_PATH, {**body, "messages": messages})
            ending = read_reply(CHAT_PATH, reply).ending
            text = choices(reply)[0].message.text or ""
            cut = ending in (ReplyVerdict.CUT, ReplyVerdict.REFUSED)
            try:
                answer = found_answer(text, self.shape.model_validate_json, cut=cut)
            except ValidationError as error:
                why = reasons(error)
            except SeveralAnswers as error:
                why = str(error)
            else:
                set_aside_replies()
                return answer
            if ending is not ReplyVerdict.COMPLETE:
                why = f"{_AT_ONCE[ending]} ({why})"
                break
            if repair < self.repairs:
                set_aside_replies()
                messages = [*messages, *_sent_back(text, why)]
        raise OutputMismatch(
            f"the answer is no {self.shape.__name__}: {why}; it was {text[:200]!r}"
        )

    def _guidance(self) -> dict[str, Any]:
        if self.guided == "json_schema":
            named = {"name": self.shape.__name__, "schema": self._schema, "strict": True}
            return {"response_format": {"type": "json_schema", "json_schema": named}}
        return {"guided_json": self._schema} if self.guided == "guided_json" else {}

    def _instruction(self) -> list[dict[str, str]]:
        if self.guided != "none":
            return []
        wanted = f"Answer with JSON alone that fits this schema:\n{json.dumps(self._schema)}"
        return [{"role": "system", "content": wanted}]


def _sent_back(text: str, why: str) -> list[dict[str, str]]:
    asked = f"This does not fit the schema: {why}. Answer again, with valid JSON alone."
    return [{"role": "assistant", "content": text}, {"role": "user", "content": asked}]


def _model_of(declared: Declared | str) -> type[BaseModel]:
    if isinstance(declared, str):
        declared = _imported(declared)
    if isinstance(declared, Mapping):
        fields: dict[str, Any] = {
            name: (annotation_of(kind), ...) for name, kind in declared.items()
        }
        return create_model("Answer", **fields)
    if isinstance(declared, type) and issubclass(declared, BaseModel):
        return declared
    raise ConfigError(
        "StructuredOutputJob needs an output_schema with types.",
        hint='Give a pydantic model, "module:Model", or names with types: '
        """--job-kwargs '{"output_schema": {"score": "float"}}'.""",
    )


def _imported(reference: str) -> Any:  # noqa: ANN401 - checked by the caller
    module, _, name = reference.partition(":")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"The output_schema {reference!r} cannot be imported: {error}.",
            hint="It is of the form MODULE:MODEL; run from the folder that holds the module.",
        ) from error
