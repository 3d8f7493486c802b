"""Turn problems of a recipe into lines for the user: file and line, dotted path, what is wrong, what was near."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.overrides import item_name
from switchkd_cli.recipe.schema import TAG, Recipe
from switchkd_cli.recipe.yaml_positions import Step, where

# By pydantic's type of error.
_WORDS = {
    "bool_type": "must be true or false",
    "dict_type": "must be a mapping",
    "finite_number": "must be a finite number",
    "float_type": "must be a number",
    "int_from_float": "must be a whole number",
    "int_type": "must be a whole number",
    "model_attributes_type": "must be a mapping",
    "model_type": "must be a mapping",
    "string_type": "must be text",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "tuple_type": "must be a list",
    "union_tag_invalid": "must be a name or a mapping",
    "string_pattern_mismatch": "a name is a letter, then letters, digits, - or _",
    "greater_than": "must be above {gt:g}",
    "greater_than_equal": "must be {ge:g} or more",
    "less_than": "must be below {lt:g}",
    "less_than_equal": "must be {le:g} or less",
}


def line(data: Any, path: Sequence[Step], message: str, file: str = "") -> str:
    """Return `FILE:LINE: dotted.path: message`; `file` is named where the value's line is unknown."""
    words, item = [], data
    for step in path:
        try:
            item = item[step]
        except (KeyError, IndexError, TypeError):
            item = None
        words.append((item_name(item) if isinstance(step, int) else None) or str(step))
    return f"{where(data, path) or file}: {'.'.join(words) or 'recipe'}: {message}"


def schema_problems(error: ValidationError, schema: type[BaseModel] = Recipe) -> Iterator[tuple[tuple[Step, ...], str]]:
    """Yield the path and message of each problem that pydantic has with a recipe or another of the package's files."""
    items = error.errors(include_url=False)
    for item in items:
        loc = item["loc"]
        inside = any(len(i["loc"]) > len(loc) and i["loc"][: len(loc)] == loc for i in items)
        if item["type"] == "too_short" and inside:
            continue  # pydantic does not count items that are wrong themselves
        path = tuple(step for step in loc if not str(step).startswith(TAG))
        path = path[:-1] if path[-1:] == ("[key]",) else path
        yield path, _message(item, path, schema)


def _message(item: Any, path: tuple[Step, ...], schema: type[BaseModel]) -> str:
    kind, value = item["type"], item["input"]
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        return f"unknown key, got {path[-1]!r}{did_you_mean(path[-1], sorted(_keys(schema, path[:-1])))}"
    if isinstance(value, dict | list | BaseModel):
        got = "a list" if isinstance(value, list) else "a mapping"
    else:
        got = repr(value) if len(repr(value)) <= 60 else repr(value)[:57] + "..."
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", item["ctx"]["expected"])
        suggestion = did_you_mean(value, options)
        near = suggestion if "did you mean" in suggestion else ""
        return f"must be one of {', '.join(options)}, got {got}{near}"
    if kind in _WORDS:
        return f"{_WORDS[kind].format(**item.get('ctx', {}))}, got {got}"
    return f"{item['msg'][:1].lower()}{item['msg'][1:]}, got {got}"


def _keys(annotation: Any, path: tuple[Step, ...]) -> set[str]:
    """Return the keys that the schema knows at `path`, in any of the forms that a value may take there."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _keys(arguments[0], path)
    if origin in (Union, types.UnionType):
        return set().union(*(_keys(argument, path) for argument in arguments))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return set(annotation.model_fields)
        field = annotation.model_fields.get(str(path[0]))
        return _keys(field.annotation, path[1:]) if field else set()
    if origin in (tuple, dict) and path:
        return _keys(arguments[0] if origin is tuple else arguments[1], path[1:])
    return set()
