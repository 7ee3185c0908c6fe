"""The common part of the built-in jobs: from a row to messages and parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from typing_extensions import override

from domyn_swarm.errors import ConfigError, InvalidInput
from domyn_swarm.jobs.base import SwarmJob
from domyn_swarm.jobs.builtin.prompts import PromptTemplate
from domyn_swarm.jobs.builtin.render_limits import TooMuch
from domyn_swarm.jobs.keywords import OutputKeywords
from domyn_swarm.jobs.naming import BODY, check_class_parameters, check_parameters
from domyn_swarm.model import ReplyVerdict
from domyn_swarm.net.parameters import CHAT

_OUR_JOBS = "domyn_swarm.jobs."
_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens")
_KEEPING_ONE = tuple(
    f"domyn_swarm.jobs.builtin.{name}" for name in ("chat", "conversations", "structured")
)
"""Modules of jobs that keep the first of several answers."""


class PromptedJob(SwarmJob):
    """A job that sends a row's text or messages, or a `prompt` over its columns.

    Options besides those of `SwarmJob`:

    prompt: a Jinja template over the row's columns; without it the first input column is sent:
        text, or a list of messages.
    system: a template, too, sent before it as the system message.
    param_columns: columns that hold parameters of the request, row by row (nulls keep the job's
        own): `["temperature"]`, or `{"temperature": "column"}`; `extra_body` holds objects.
    """

    version = "1"
    request_parameters = CHAT
    as_request = True

    def __init__(
        self,
        *,
        prompt: str | None = None,
        system: str | None = None,
        param_columns: Sequence[str] | Mapping[str, str] = (),
        input_columns: Sequence[str] | str | None = None,
        **options: Unpack[OutputKeywords],
    ) -> None:
        """See the class.

        Raises:
            ConfigError: a template is invalid, or uses columns that `input_columns` omits.
        """
        self.prompt = None if prompt is None else PromptTemplate(prompt, "prompt")
        self.system = None if system is None else PromptTemplate(system, "system")
        named = (param_columns,) if isinstance(param_columns, str) else param_columns
        self.param_columns = dict(
            named if isinstance(named, Mapping) else zip(named, named, strict=True)
        )
        super().__init__(input_columns=self._columns(input_columns), **options)
        check_parameters(type(self).__name__, self.param_columns, self.known_parameters())
        extra = extra_fields(self.params.pop(BODY, None))
        self.params = {**self.params, **extra}

    def _columns(self, given: Sequence[str] | str | None) -> tuple[str, ...]:
        templates = [one for one in (self.prompt, self.system) if one is not None]
        used = [name for one in templates for name in one.columns]
        asked = (given,) if isinstance(given, str) else tuple(given or ())
        if asked and self.prompt is not None and (missing := {*used} - {*asked}):
            raise ConfigError(
                f"The templates use {', '.join(sorted(missing))}, "
                f"but the input columns are {', '.join(asked)}.",
                hint="Leave the input columns out: the templates say which they need.",
            )
        if self.prompt is None:
            asked = asked or tuple(self.input_columns)
        return tuple(dict.fromkeys([*asked, *used, *self.param_columns.values()]))

    @override
    def check(self) -> None:
        """Also refuses a template without a column: all rows would send the same request."""
        if self.prompt is not None and not self.input_columns:
            raise ConfigError(
                "The prompt uses no column, so every row would send the same request.",
                hint="Name a column in it: {{ column }}.",
            )
        super().check()
        several = self.params.get("n") not in (None, 1) or "n" in self.param_columns
        if several and type(self).transform_item.__module__ in _KEEPING_ONE:
            raise ConfigError(
                f"{type(self).__name__} keeps one answer for each row, and `n` asks for more.",
                hint="MultiChatCompletionJob(n=...) keeps several.",
            )
        check_class_parameters(type(self), self.request_parameters, self.params)
        self._check_ignored()

    def _check_ignored(self) -> None:
        """Refuse input columns that no request would contain; users' own classes may read them."""
        system = () if self.system is None else self.system.columns
        read = {self.input_columns[0], *system, *self.param_columns.values()}
        ignored = [name for name in self.input_columns if name not in read]
        if self.prompt is None and ignored and type(self).__module__.startswith(_OUR_JOBS):
            asked = self.input_columns[0]
            raise ConfigError(
                f"{type(self).__name__} asks what the first input column holds, {asked!r}: "
                f"{', '.join(map(repr, ignored))} would be ignored.",
                hint="Name one column with --input-column, or several in a prompt: "
                f"--prompt '{{{{ {asked} }}}} {{{{ {ignored[0]} }}}}'.",
            )

    @override
    def check_columns(self, there: Sequence[str]) -> None:
        for template in (self.prompt, self.system):
            if template is not None:
                template.check_columns(there)
        for name, column in self.param_columns.items():
            if column not in there:
                raise InvalidInput(
                    f"param_columns takes {name} from the column {column!r}, which is missing.",
                    hint=f"The input has: {', '.join(there)}.",
                )

    @override
    def check_items(self, items: Sequence[Any]) -> None:
        """Refuses a template that does too much for each of the rows."""
        why = None
        for item in items:
            try:
                self._render(self.columns_of(item))
            except TooMuch as error:
                why = str(error)
            else:
                return
        if why is not None:
            raise ConfigError(
                f"{why[:1].upper()}{why[1:]}: it cannot be made of any of the first rows.",
                hint="A loop inside another one, or text that is repeated, makes more than it "
                "looks.",
            )

    def _render(self, columns: Mapping[str, Any]) -> None:
        """Make what the templates make of a row; what only that row has wrong is its error later.

        Raises:
            TooMuch: more than a prompt needs.
        """
        for template in (self.prompt, self.system):
            try:
                if template is not None:
                    template.render(columns)
            except TooMuch:
                raise
            except ValueError:
                return

    @property
    @override
    def sent_columns(self) -> Sequence[str]:
        """The columns of the system message come first."""
        system = () if self.system is None else self.system.columns_in_order
        asked = self.input_columns[:1] if self.prompt is None else self.prompt.columns_in_order
        return tuple(dict.fromkeys([*system, *asked]))

    @override
    def described(self) -> dict[str, Any]:
        return {
            **super().described(),
            "prompt": None if self.prompt is None else self.prompt.text,
            "system": None if self.system is None else self.system.text,
            "param_columns": self.param_columns,
        }

    @override
    def remarks(self, verdicts: Mapping[ReplyVerdict, int]) -> list[str]:
        """Reports answers that were cut at the default token limit."""
        cut = verdicts.get(ReplyVerdict.CUT)
        if not cut or not {*_TOKEN_LIMITS}.isdisjoint({*self.params, *self.param_columns}):
            return []
        were = "answer was" if cut == 1 else "answers were"
        return [f"{cut} {were} cut by the server's own token limit: the job gives no max_tokens."]

    @property
    @override
    def is_greedy(self) -> bool:
        """False also if rows have a temperature of their own."""
        return super().is_greedy and {"temperature", BODY}.isdisjoint(self.param_columns)

    def columns_of(self, item: Any) -> dict[str, Any]:  # noqa: ANN401 - the columns'
        """The row's columns by name, even if there is only one."""
        if len(self.input_columns) == 1:
            return {self.input_columns[0]: item}
        columns: dict[str, Any] = item
        return columns

    def body(self, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Model and parameters of the row's request.

        Raises:
            ConfigError: a column with `extra_body` holds other values than objects; a row error.
        """
        body = {"model": self.model, **self.params}
        for name, column in self.param_columns.items():
            value = columns[column]
            if name == BODY:
                body.update(extra_fields(value))
            elif value is not None:
                body[name] = value
        return body

    def asked(self, columns: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the column's
        """The prompt, or the value of the first input column."""
        if self.prompt is not None:
            return self.prompt.render(columns)
        return columns[self.input_columns[0]]

    def messages(self, columns: Mapping[str, Any]) -> list[Any]:
        """The conversation to be answered.

        Raises:
            ValueError: the column holds neither text nor messages; a row error.
        """
        asked = self.asked(columns)
        if isinstance(asked, str):
            messages: list[Any] = [{"role": "user", "content": asked}]
        elif isinstance(asked, list) and asked:
            messages = list(map(as_message, asked))
            for one in messages:
                if not isinstance(one, dict):
                    raise ValueError(
                        f"a message must be an object with role and content, not {one!r:.80}"
                    )
        else:
            raise ValueError(f"messages must be text or a list of messages, not {asked!r:.80}")
        if self.system is None:
            return messages
        return [{"role": "system", "content": self.system.render(columns)}, *messages]


def as_message(one: Any) -> Any:  # noqa: ANN401 - of a row
    """A message of a conversation; Arrow's maps, which are lists of pairs in Python, become
    objects.
    """
    pairs = isinstance(one, list) and one and all(isinstance(pair, tuple) for pair in one)
    return dict(one) if pairs else one


def extra_fields(given: Any) -> Mapping[str, Any]:  # noqa: ANN401 - checked here
    """The fields of an `extra_body`.

    Raises:
        ConfigError: it is not an object.
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(
            f"extra_body must be an object of fields, not {given!r:.80}.",
            hint="""For example {"extra_body": {"top_k": 20}}.""",
        )
    return given or {}
