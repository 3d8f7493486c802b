"""Names are resolved late, and signatures are read without importing anything."""

import subprocess
import sys
from typing import Literal

import pytest

from switchkd_cli import registry
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import BUILT_IN

SOURCE = """
raise RuntimeError("this module must not be imported")

def loss(teacher_logits, student_logits, *, temperature: float = 3.0, k: "int | None" = None,
         mode: Literal["a", "b"] = "a", window: int, other: Tensor = None, sizes: tuple[int, ...] = (1, 2)) -> Tensor:
    return None

fixed = partial(loss, temperature=1.0, mode="b")
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "plugged").mkdir()
    (tmp_path / "plugged" / "__init__.py").write_text("raise RuntimeError")
    (tmp_path / "plugged" / "losses.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.LOSSES, "plugged", "plugged.losses:loss")


def test_a_signature_is_read_from_the_text(plugin):
    read = registry.signature("loss", "plugged")
    assert tuple(read.positional) == ("teacher_logits", "student_logits")
    assert (read.keywords["temperature"].annotation, read.keywords["temperature"].default) == (float, 3.0)
    assert read.keywords["k"].annotation == int | None
    assert read.keywords["mode"].annotation == Literal["a", "b"]
    assert {name for name, parameter in read.keywords.items() if parameter.default is parameter.empty} == {"window"}
    assert read.keywords["sizes"].default == (1, 2)
    with pytest.raises(RuntimeError):
        registry.resolve("loss", "plugged")


def test_a_partial_s_signature_leaves_out_what_it_fixes(plugin, monkeypatch):
    monkeypatch.setitem(registry.LOSSES, "fixed", "plugged.losses:fixed")
    whole, fixed = registry.signature("loss", "plugged"), registry.signature("loss", "fixed")
    assert fixed.positional == whole.positional
    assert fixed.keywords == {k: v for k, v in whole.keywords.items() if k not in ("temperature", "mode")}


def test_who_leads_follows_from_the_parameters():
    dbild = registry.signature("loss", "dbild")
    assert dbild.leaders({}) == dbild.leaders({"leaders": "both"}) == ("teacher", "student")
    assert dbild.leaders({"leaders": "student"}) == ("student",)
    led = registry.signature("loss", "dbild_teacher_led")
    assert led.knees == led.leaders({}) == ("teacher",) and "leaders" not in led.keywords


def test_an_unknown_name_suggests_one():
    with pytest.raises(UserError, match="unknown loss, got 'dbid' \\(did you mean 'dbild'"):
        registry.resolve("loss", "dbid")
    with pytest.raises(UserError, match="unknown source, got 'lava_json'"):
        registry.signature("source", "lava_json")


def test_a_registered_function_that_is_missing_is_our_bug(plugin, monkeypatch):
    monkeypatch.setitem(registry.LOSSES, "gone", "plugged.losses:gone")
    with pytest.raises(LookupError):
        registry.signature("loss", "gone")


@pytest.mark.parametrize(
    ("kind", "name"), [("loss", n) for n in registry.LOSSES] + [("source", n) for n in registry.REGISTRIES["source"]]
)
def test_everything_registered_has_a_readable_signature(kind, name):
    read = registry.signature(kind, name)
    assert all(parameter.annotation is not None for parameter in read.keywords.values())
    if kind == "loss":
        assert {side for side, _ in read.reads} - set(BUILT_IN) <= {"reference"}  # a teacher that a recipe names
        assert "student" in {side for side, _ in read.reads}
        assert {kind for _, kind in read.reads} <= {*registry.OF_POSITIONS, *registry.OF_IMAGES}
        assert not any(parameter.default is parameter.empty for parameter in read.keywords.values())


def test_reading_signatures_imports_nothing_heavy():
    code = (
        "import sys; from switchkd_cli import registry\n"
        "for n in registry.LOSSES: registry.signature('loss', n)\n"
        "for n in registry.REGISTRIES['source']: registry.signature('source', n)\n"
        "assert not {'torch', 'transformers', 'switchkd_cli.engine'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
