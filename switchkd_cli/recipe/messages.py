"""Pydantic's errors in our words: where in the recipe, what is wrong, what was got, what was near."""

from __future__ import annotations

import re
import types
from collections.abc import Iterator
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from switchkd_cli.errors import did_you_mean
from switchkd_cli.recipe.schema import TAG, Recipe
from switchkd_cli.recipe.yaml_positions import Step

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
}
_BOUNDS = {
    "greater_than": "above {gt:g}",
    "greater_than_equal": "{ge:g} or more",
    "less_than": "below {lt:g}",
    "less_than_equal": "{le:g} or less",
}


def problems(
    error: ValidationError, schema: type[BaseModel] = Recipe
) -> Iterator[tuple[tuple[Step, ...], str]]:
    """The path and message of each schema problem of a recipe, or of another of the package's files."""
    items = error.errors(include_url=False)
    for item in items:
        if item["type"] == "too_short" and any(_inside(other["loc"], item["loc"]) for other in items):
            continue  # pydantic does not count items that are wrong themselves
        loc = tuple(step for step in item["loc"] if not str(step).startswith(TAG))
        on_key = loc[-1:] == ("[key]",)
        path = loc[:-1] if on_key else loc
        yield path, _message(item, path, schema)


def _message(item: Any, path: tuple[Step, ...], schema: type[BaseModel]) -> str:
    kind, context = item["type"], item.get("ctx", {})
    if kind == "missing":
        return "missing"
    if kind == "extra_forbidden":
        return f"unknown key, got {path[-1]!r}{did_you_mean(path[-1], sorted(_keys(schema, path[:-1])))}"
    got = _shown(item["input"])
    if kind == "literal_error":
        options = re.findall(r"'([^']*)'", context["expected"])
        return f"must be one of {', '.join(options)}, got {got}{_near(item['input'], options)}"
    if kind == "string_pattern_mismatch":
        return f"a name is a letter, then letters, digits, - or _, got {got}"
    if kind in _BOUNDS:
        return f"must be {_BOUNDS[kind].format(**context)}, got {got}"
    return f"{_WORDS.get(kind) or item['msg'][:1].lower() + item['msg'][1:]}, got {got}"


def _inside(loc: tuple[Step, ...], outer: tuple[Step, ...]) -> bool:
    return len(loc) > len(outer) and loc[: len(outer)] == outer


def _near(got: Any, options: list[str]) -> str:
    suggestion = did_you_mean(got, options)
    return suggestion if "did you mean" in suggestion else ""


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, dict | list | BaseModel) else f"a {_word(value)}"
    return text if len(text) <= 60 else text[:57] + "..."


def _word(value: Any) -> str:
    return "list" if isinstance(value, list) else "mapping"


def _keys(annotation: Any, path: tuple[Step, ...]) -> set[str]:
    """The keys that the schema knows at `path`, over every form a value there may take."""
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
