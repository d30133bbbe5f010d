"""Renders a model's own chat template, as Hugging Face tokenizers do, without importing transformers.

A template comes with the model and is therefore untrusted: it runs in Jinja2's immutable sandbox, and every
failure is a DataError. The names that templates expect (raise_exception, strftime_now, tojson, loop controls,
the `generation` block) follow Hugging Face's chat-templating documentation.
"""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from crescendo.common.errors import DataError

Message = Mapping[str, str]


class _GenerationBlock(Extension):
    """`{% generation %}` marks the assistant's text for training masks; rendering passes through it."""

    tags = {"generation"}  # noqa: RUF012  Jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatTemplate:
    """A compiled chat template; stateless, so one serves a whole process."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compiles `source`; special_tokens (bos_token, eos_token, ...) are visible in it.

        Raises DataError when the template does not compile.
        """
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationBlock, loopcontrols]
        )
        environment.filters["tojson"] = _tojson
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = _strftime_now
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except TemplateError as error:
            raise DataError(
                f"the model's chat template does not compile: {error}.",
                field="chat_template",
                fix="Repair chat_template.jinja in the model's folder, or set data.chat_template to false.",
            ) from error

    def render(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str:
        """The conversation as text; raises DataError when the template refuses it."""
        try:
            return self._template.render(
                messages=[dict(message) for message in messages],
                tools=None,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise DataError(
                f"the model's chat template refused the conversation: {error}.",
                field="chat_template",
                fix="Check which roles the template takes (some have no system role: empty data.system_prompt).",
            ) from error
