"""Write docs/recipe_fields.md: every field of a recipe, from the recipe's schema and the text below each of its fields.

python scripts/recipe_fields.py
"""

import ast
import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

from switchkd_cli.recipe import schema

PAGE = Path(__file__).parents[1] / "docs" / "recipe_fields.md"
HEAD = """# Fields of a recipe

Every field that a recipe file may have. This page is written from the schema by `make docs`
(`python -m scripts.recipe_fields`): change the text in `switchkd_cli/recipe/schema.py`.

A dotted name works as an override on the command line and under a row's `set`: `stages.distill.lr=1e-4` (not `rows` and
`controls`). Capital letters stand for a name that the recipe gives: of a stage, a term, a data set, a path or a row. A key that is not
listed is an error. A recipe that begins with `extends: OTHER.yaml` may have `drop` and `set` of its own, like a row.
[recipes.md](recipes.md) explains whole recipes, [methods.md](methods.md) the losses and their parameters.
"""
NAMES = {
    "data": "SET",
    "stages": "STAGE",
    "objective": "TERM",
    "paths": "PATH",
    "rows": "ROW",
}  # what an item is found by in a dotted path


def texts() -> dict[tuple[str, str], str]:
    """Return the text below each field, by class and field; that of the class itself by an empty name."""
    tree, found = ast.parse(Path(schema.__file__).read_text(encoding="utf-8")), {}
    for model in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        bases = {base.id for base in model.bases if isinstance(base, ast.Name)}
        found |= {(model.name, field): text for (base, field), text in found.items() if base in bases}
        found[model.name, ""] = ast.get_docstring(model) or ""
        for field, text in pairwise(model.body):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr):
                found[model.name, field.target.id] = " ".join(ast.literal_eval(text.value).split())
    return found


def models_in(form: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield (model, dotted path) of each model that a field's value may be."""
    if "$ref" in form:
        yield form["$ref"].rsplit("/", 1)[1], path
    for one in (*form.get("anyOf", ()), *form.get("oneOf", ())):
        yield from models_in(one, path)
    if name := NAMES.get(path.rsplit(".", 1)[-1]):
        for one in (form.get("items", {}), *form.get("patternProperties", {}).values()):
            yield from models_in(one, f"{path}.{name}")


def words(form: dict[str, Any]) -> str:
    """Return the type of a JSON schema in a few words."""
    if forms := form.get("anyOf") or form.get("oneOf"):
        return " or ".join(dict.fromkeys(words(one) for one in forms if one.get("type") != "null"))
    if names := form.get("enum") or [form[key] for key in ("const",) if key in form]:
        return " \\| ".join(f"`{name}`" for name in names)
    if "$ref" in form:
        return "fields below"
    kind = form["type"]
    if kind == "array":
        return f"list: {words(form.get('items') or form['prefixItems'][0])}"
    if kind == "object":
        inner = form.get("additionalProperties")
        return f"mapping to {words(inner)}" if isinstance(inner, dict) else "mapping"
    if kind in ("string", "boolean"):
        return {"boolean": "`true` \\| `false`"}.get(kind, "name" if form.get("pattern") == schema.NAME else "text")
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {form[key]:.0f}" for key, sign in bounds.items() if form.get(key, 10**6) < 10**6]
    return " ".join(["whole number" if kind == "integer" else "number", ", ".join(limits)]).strip()


def table(model: str, path: str, form: dict[str, Any], found: dict[tuple[str, str], str]) -> Iterator[str]:
    """Yield the lines of a model's table: its fields below a dotted path."""
    yield from ("| field | type | default | meaning |", "|---|---|---|---|")
    for name, field in form["properties"].items():
        text = found.get((model, name)) or found[model, f"{name}_"]  # `from` can't be a name in Python
        text = re.sub(r"docs/(\w+\.md)", r"[\1](\1)", text)
        if "default" not in field:
            default = "none" if "(none: " in text else "**required**"  # a term without a name has that of its loss
        elif field["default"] in (None, "", [], {}):
            default = "none"
        else:
            default = (
                "see below"
                if isinstance(field["default"], dict)
                else f"`{json.dumps(field['default'])}`".replace('"', "")
            )
        yield f"| `{f'{path}.{name}'.removeprefix('.')}` | {words(field)} | {default} | {text} |"


def page() -> str:
    """Return the whole page."""
    whole = schema.Recipe.model_json_schema()
    forms, found, places = {**whole["$defs"], "Recipe": whole}, texts(), {"Recipe": [""]}

    def walk(model: str, path: str) -> None:
        for name, field in forms[model]["properties"].items():
            for inner, place in models_in(field, f"{path}.{name}".removeprefix(".")):
                places.setdefault(inner, []).append(place)
                walk(inner, place)

    walk("Recipe", "")
    parts = [HEAD]
    for model, paths in places.items():
        paths = list(dict.fromkeys(paths))
        heading = " or ".join(f"`{path}`" for path in paths) if paths != [""] else "The recipe"
        # one that stands for a name of the recipe's own, as data.SET does
        general = next((path for path in paths if path != path.lower()), paths[-1])
        lines = "\n".join(table(model, general, forms[model], found))
        parts.append(f"## {heading}\n\n{found[model, '']}\n\n{lines}\n")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
