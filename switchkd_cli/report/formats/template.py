"""Fill in the templates of the page, the Markdown and the LaTeX."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from switchkd_cli.report.document import Document

TEMPLATES = Path(__file__).with_name("templates")
LATEX: dict[str, Any] = {
    "block_start_string": "<%",
    "block_end_string": "%>",
    "variable_start_string": "<<",
    "variable_end_string": ">>",
    "comment_start_string": "<#",
    "comment_end_string": "#>",
}
"""Signs around statements and values in LaTeX, which needs braces itself."""


def environment_of(folder: Path, **settings: Any) -> jinja2.Environment:
    """What reads the templates of a folder: statements leave no lines, and a name without a value is an error."""
    kept: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    return jinja2.Environment(loader=jinja2.FileSystemLoader(folder), **kept, **settings)


def render(name: str, document: Document, *filters: Callable[..., Any], **more: Any) -> str:
    """A document, and more, in a template that uses these filters by name. In HTML text is escaped, unless it is `Markup`."""
    environment = environment_of(TEMPLATES, autoescape=".html" in name, **(LATEX if ".tex" in name else {}))
    environment.filters |= {of.__name__.lstrip("_"): of for of in filters}
    style = Markup((TEMPLATES / "report.css").read_text(encoding="utf-8"))
    return environment.get_template(name).render(document=document, style=style, **more)
