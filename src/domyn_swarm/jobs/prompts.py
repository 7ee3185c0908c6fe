"""Prompt templates over a row's columns: Jinja, sandboxed, and strict about what is missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from domyn_swarm.errors import ConfigError


def _shown(value: Any) -> Any:  # noqa: ANN401 - a column's
    if value is None:
        raise ValueError("a value in the prompt is null; `{{ column or '' }}` would allow it")
    if isinstance(value, list | dict):
        return msgspec.json.encode(value).decode()
    return value


_environment = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined,
    finalize=_shown,
    keep_trailing_newline=True,
    autoescape=False,  # prompts are text, not HTML
)


class PromptTemplate:
    """Text with `{{ column }}` in it. Lists and dictionaries are shown as JSON.

    A null is a row error, lest the model be asked about `None`.
    """

    def __init__(self, text: str, what: str) -> None:
        """`what` names the template in errors: `prompt`, `system`.

        Raises:
            ConfigError: it is not valid Jinja; names the line.
        """
        self.text = text
        try:
            self.columns = tuple(sorted(meta.find_undeclared_variables(_environment.parse(text))))
            self._template = _environment.from_string(text)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"The {what} template is wrong in line {error.lineno}: {error.message}.",
                hint="A column stands in it as {{ name }}.",
            ) from error

    def render(self, columns: Mapping[str, Any]) -> str:
        """The text of one row.

        Raises:
            ValueError: a column is null or cannot be shown; a row error.
        """
        try:
            return self._template.render(columns)
        except TemplateError as error:
            raise ValueError(f"the prompt cannot be made: {error}") from error
