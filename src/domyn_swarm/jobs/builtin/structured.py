"""`StructuredOutputJob`: answers of a given shape, as typed columns."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Mapping
from importlib import import_module
from typing import Any, Literal, Unpack

from pydantic import BaseModel, ValidationError, create_model
from typing_extensions import override

from domyn_swarm.batch.outcomes.row_outcomes import set_aside_replies
from domyn_swarm.batch.output.output_schema import Declared, OutputMismatch, annotation_of, reasons
from domyn_swarm.errors import ConfigError
from domyn_swarm.jobs.builtin.json_answers import SeveralAnswers, found_answer, validated
from domyn_swarm.jobs.builtin.prompted import PromptedJob
from domyn_swarm.jobs.builtin.responses import choices
from domyn_swarm.jobs.keywords import ShapedPromptKeywords
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.openai import CHAT_PATH
from domyn_swarm.net.replies import read_reply, words_of

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
            ending, text = _heard(reply)
            cut = ending in (ReplyVerdict.CUT, ReplyVerdict.REFUSED)
            try:
                answer = found_answer(text, functools.partial(validated, self.shape), cut=cut)
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


def _heard(reply: bytes | memoryview) -> tuple[ReplyVerdict, str]:
    """How a reply ended, and what it says."""
    said = words_of(reply)
    if said is not None:
        return ReplyVerdict.COMPLETE, said
    return read_reply(CHAT_PATH, reply).ending, choices(reply)[0].message.text or ""


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
