"""Check plain data by a schema, and say where and what is wrong with it, in words for the user."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from switchkd_cli.errors import did_you_mean
from switchkd_cli.package_data import read_yaml
from switchkd_cli.recipe.schema import TAG
from switchkd_cli.recipe.yaml_positions import Step

Schema = TypeVar("Schema", bound=BaseModel)
Problem = tuple[tuple[Step, ...], str]
"""Where something is wrong in plain data, and what."""

_WORDS: Mapping[str, str] = read_yaml(__file__)
"""What a value must be, by pydantic's type of error; for others, pydantic's own words are used."""


def fitted(schema: type[Schema], data: Any) -> tuple[Schema | None, list[Problem]]:
    """Return data as the schema's model, or None and where and what is wrong with it."""
    try:
        return schema.model_validate(data), []
    except ValidationError as error:
        return None, list(_misfits(schema, error.errors(include_url=False)))


def _misfits(schema: type[BaseModel], items: Sequence[Mapping[str, Any]]) -> Iterator[Problem]:
    for item in items:
        loc = item["loc"]
        inside = any(len(i["loc"]) > len(loc) and i["loc"][: len(loc)] == loc for i in items)
        if item["type"] == "too_short" and inside:
            continue  # pydantic does not count items that are wrong themselves
        path = tuple(step for step in loc if not str(step).startswith(TAG) and step != "[key]")
        if item["type"] == "extra_forbidden":
            known = sorted(_keys(schema, path[:-1]) - {path[-1]})  # another form may have it
            message = f"unknown key, got {path[-1]!r}{did_you_mean(path[-1], known)}"
        else:
            message = "missing" if item["type"] == "missing" else misfit([item])
        yield path, message


def misfit(items: Sequence[Mapping[str, Any]]) -> str:
    """Return what pydantic has against a value, in one or several of its errors: what it must be, what was got."""
    value, words = items[0]["input"], []
    got = "a mapping" if isinstance(value, dict) else "a list" if isinstance(value, list) else repr(value)
    got = got if len(got) <= 60 else got[:57] + "..."
    for item in items:
        if item["type"] == "literal_error":
            options = re.split(", | or ", item["ctx"]["expected"].replace("'", ""))
            words.append(f"must be one of {', '.join(options)}")
            got += did_you_mean(value, options, most=0)
        else:
            own = item["msg"].replace("Input should", "must")
            words.append(_WORDS.get(item["type"], f"{own[:1].lower()}{own[1:]}"))
    return f"{' or '.join(dict.fromkeys(words))}, got {got}"


def _keys(annotation: Any, path: tuple[Step, ...]) -> set[str]:
    """Return the keys that the schema knows at `path`, in any of the forms that a value may take there."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not path:
            return {field.alias or name for name, field in annotation.model_fields.items()}
        field = annotation.model_fields.get(str(path[0]))
        return _keys(field.annotation, path[1:]) if field else set()
    inside = path[1:] if get_origin(annotation) in (tuple, dict) else path
    return set().union(*(_keys(argument, inside) for argument in get_args(annotation)))
