"""Fill in the templates of the report's page and of its Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from switchkd_cli.report.document import Document

TEMPLATES = Path(__file__).with_name("templates")


def render(name: str, document: Document, filters: Mapping[str, Callable[..., Any]]) -> str:
    """A document in a template that uses these filters. In HTML what they return is escaped, unless it is `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=".html" in name,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"kind": lambda block: type(block).__name__.lower(), **filters}
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(document=document, style=style)
