"""docs/architecture.md shows the package as it is; every folder says what it is for, and a name of a file or a class means one thing."""

import ast
import re
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "switchkd_cli"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))


def drawn_folders():
    """The folders of the page's tree, as paths from the repository's root, each with its line."""
    tree = re.search(r"```\n(.*?)```", PAGE, re.DOTALL)[1]
    above, found = [], {}
    for line in tree.splitlines():
        indent, name, text = re.fullmatch(r"( *)(\S+)/ +(\S.*)", line).groups()
        above = [*above[: len(indent) // 2], name]
        found["/".join(above)] = text
    return found


def real_folders():
    """Every folder of the package that holds files; the assets' own subfolders are left out."""
    assets = PACKAGE / "playground" / "assets"
    files = [file for file in PACKAGE.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    return {str(file.parent.relative_to(ROOT)) for file in files if assets not in file.parent.parents}


def test_the_tree_is_the_package():
    drawn = drawn_folders()
    assert {folder for folder in drawn if folder.startswith("switchkd_cli")} == real_folders()
    assert all((ROOT / folder).is_dir() for folder in drawn)


def test_every_file_that_the_page_names_is_there():
    named = {name for name in re.findall(r"`([\w/]+\.py)`", PAGE)}
    assert len(named) > 15
    assert {name for name in named if not (PACKAGE / name).is_file()} == set()


def test_every_folder_says_what_it_is_for():
    silent = [
        str(file.parent.relative_to(ROOT))
        for file in FILES
        if file.name == "__init__.py" and not ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
    ]
    assert silent == []
    packages = {file.parent for file in FILES}
    assert all((folder / "__init__.py").is_file() for folder in packages)


def test_no_two_files_have_one_name():
    named = defaultdict(list)
    for file in FILES:
        if file.name != "__init__.py":
            named[file.name].append(str(file.relative_to(PACKAGE)))
    assert {name: places for name, places in named.items() if len(places) > 1} == {}


def test_no_two_classes_have_one_name():
    named = defaultdict(list)
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef):
                named[node.name].append(str(file.relative_to(PACKAGE)))
    assert {name: places for name, places in named.items() if len(places) > 1} == {}
