"""Jinja2 expressions inside tables, evaluated to native values."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache, reduce
from operator import getitem
from typing import Any

from jinja2 import Environment, StrictUndefined, TemplateError, select_autoescape
from jinja2.environment import TemplateExpression

from kiln.errors import KilnError

_EXPRESSION = re.compile(r"\{\{((?:(?!\}\}).)+)\}\}", re.DOTALL)
_NAME = re.compile(r"\w+(\.\w+)*")
"""What needs no Jinja, whose compiler is slow: the name of a value."""

_ENVIRONMENT = Environment(undefined=StrictUndefined, autoescape=select_autoescape(default_for_string=False))


@lru_cache(maxsize=1024)
def _compile(expression: str) -> TemplateExpression:
    return _ENVIRONMENT.compile_expression(expression, undefined_to_none=False)


def render(value: Any, names: Mapping[str, Any], where: str) -> Any:
    """``value`` with every ``{{ expression }}`` in it evaluated over ``names``.

    A string that is one expression alone becomes the expression's own value (a list stays a list).
    Raises KilnError, naming ``where``, for a name that does not exist or a broken expression.
    """
    if isinstance(value, str):
        whole = _EXPRESSION.fullmatch(value.strip())
        try:
            if whole:
                return _evaluate(whole[1], names)
            return _EXPRESSION.sub(lambda found: str(_evaluate(found[1], names)), value)
        except (TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise KilnError(
                f"{value!r} cannot be evaluated ({error})", where=where, fix="correct the expression"
            ) from None
    if isinstance(value, list):
        return [render(item, names, where) for item in value]
    if isinstance(value, dict):
        return {key: render(item, names, where) for key, item in value.items()}
    return value


def _evaluate(expression: str, names: Mapping[str, Any]) -> Any:
    expression = expression.strip()
    if _NAME.fullmatch(expression):
        try:
            return reduce(getitem, expression.split("."), names)
        except (KeyError, TypeError):
            pass  # Jinja says what is missing
    result = _compile(expression)(**names)
    _require_defined(result)
    return result


def _require_defined(value: Any) -> None:
    if isinstance(value, StrictUndefined):
        str(value)  # raises with the name that is undefined
    elif isinstance(value, dict):
        for item in value.values():
            _require_defined(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _require_defined(item)
