"""The documentation is true: the page of fields is that of the schema, links lead somewhere, the FAQ's commands are accepted."""

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml
from pydantic import TypeAdapter

from scripts import recipe_fields
from switchkd_cli.cli import app
from switchkd_cli.commands.options import comma_separated
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.recipe.named_files import find
from switchkd_cli.recipe.schema import Recipe, RowFormat

ROOT = Path(__file__).parents[1]
PAGES = sorted(path for pattern in ("*.md", "docs/*.md", "docs/results/*.md") for path in ROOT.glob(pattern))
FAQ = (ROOT / "docs" / "faq.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs" / "results" / "README.md").read_text(encoding="utf-8")
COMMANDS = [line for line in FAQ.replace("\\\n", "").splitlines() if re.match(r"(\w+=\S+ )?switchkd ", line)]
REPEATED = re.findall(r"`(switchkd [^`]*)`", RESULTS)


def test_the_page_of_fields_is_the_schemas():
    assert recipe_fields.PAGE.read_text(encoding="utf-8") == recipe_fields.page(), (
        "stale: python -m scripts.recipe_fields"
    )


def test_the_page_has_every_field():
    page = recipe_fields.page()
    for name in ("title", "student.vision", "teacher.checkpoint", "data.SET.max_faults", "stages.STAGE.not_finite"):
        assert f"| `{name}` |" in page
    for name in (
        "stages.STAGE.validation.share",
        "stages.STAGE.objective.TERM.on",
        "evaluation.items",
        "rows.ROW.drop",
    ):
        assert f"| `{name}` |" in page


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give a page's headings."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = [heading.strip().lower() for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


def test_each_line_of_the_results_is_one_command():
    table = [line for line in RESULTS.splitlines() if line.startswith("|") and "`switchkd " in line or "`make " in line]
    assert len(table) == len(REPEATED) + 1 >= 6  # and make reproduce


@pytest.mark.parametrize("line", [*COMMANDS, *REPEATED])
def test_a_command_of_a_page_is_accepted(line):
    words = shlex.split(re.sub(r"^\w+=\S+ ", "", line))[1:]
    name, arguments = words[0], words[1:]
    command = typer.main.get_command(app).commands[name]
    given = command.make_context(name, list(arguments)).params
    if name in ("distill", "ablate") and not given.get("resume"):
        recipe = given["recipe"] if name == "distill" else given["recipes"][0]
        overrides = given["overrides"] if name == "distill" else given["recipes"][1:]
        rows = comma_separated(given.get("rows"))
        assert load_rows(find(recipe), rows or [given.get("row")], overrides or (), world=given["world"])


@pytest.mark.parametrize("snippet", re.findall(r"^```yaml\n(.*?)^```$", FAQ, re.DOTALL | re.MULTILINE))
def test_a_snippet_of_the_faq_is_accepted(snippet):
    for field, value in yaml.safe_load(snippet).items():
        TypeAdapter(Recipe.model_fields[field].annotation).validate_python(value)
    for data in yaml.safe_load(snippet).get("data", {}).values():
        if isinstance(form := data.get("parameters", {}).get("format"), dict):
            RowFormat.model_validate(form)


def test_the_site_has_every_page_and_its_files_are_there():
    named = re.findall(r"[\w/.-]+\.(?:md|js|css|py)", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    assert {str(page.relative_to(ROOT)) for page in PAGES} <= set(named)


def test_the_faq_answers_many_questions():
    assert len(re.findall("^### .*\\?", FAQ, re.MULTILINE)) >= 15 and len(COMMANDS) >= 15
