"""Installed libraries outside the declared ranges, or broken, are reported in a line before training or scoring."""

import sys
from importlib import metadata
from types import ModuleType

import pytest

from switchkd_cli.engine.evaluation import score_model
from switchkd_cli.errors import MACHINE, UserError, import_errors
from switchkd_cli.planning import preflight

HARNESS = "switchkd_cli.engine.evaluation.lmms_harness"


@pytest.fixture
def versions(monkeypatch):
    """Replaces what is declared, and which versions are installed."""

    def pretend(declared=None, **found):
        real = metadata.version
        if declared is not None:
            monkeypatch.setattr(metadata, "requires", lambda name: declared)
        monkeypatch.setattr(metadata, "version", lambda name: found[name] if name in found else real(name))
        preflight._outside_range.cache_clear()

    yield pretend
    monkeypatch.undo()
    preflight._outside_range.cache_clear()


def problems(scoring=False):
    with pytest.raises(UserError) as caught:
        preflight.check_libraries(scoring=scoring)
    assert caught.value.code == MACHINE
    return caught.value


def test_what_is_installed_here_is_what_is_declared():
    preflight.check_libraries(scoring=True)


def test_every_library_outside_its_range_is_reported_at_once(versions):
    versions(["numpy>=1.26", "filelock<4.3,>=3.16", "torch>=2.6"], numpy="1.20.3", filelock="4.3.1", torch="2.6.0")
    error = problems()
    assert error.problems == (
        "numpy 1.20.3 is installed, switchkd needs >=1.26",
        "filelock 4.3.1 is installed, switchkd needs <4.3,>=3.16",
    )
    assert error.hint == "pip install 'numpy>=1.26' 'filelock<4.3,>=3.16'"


@pytest.mark.parametrize("found", ["2.6.0", "2.6.0+cu124", "2.6.0a0+ecf3bae40a.nv25.1", "2.14.1"])
def test_builds_of_a_release_count_as_the_release(versions, found):
    versions(["torch>=2.6"], torch=found)
    preflight.check_libraries()


def test_a_candidate_of_a_release_that_is_too_new_is_too_new(versions):
    versions(["filelock<4.3"], filelock="4.3.0rc1")
    problems()


def test_other_platforms_extras_and_absent_packages_are_not_checked(versions):
    versions(["numpy>99; sys_platform == 'none'", "numpy>99; extra == 'test'", "no-such-package>1"])
    preflight.check_libraries()


def test_a_checkout_that_is_not_installed_declares_nothing(monkeypatch, versions):
    versions()

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    preflight.check_libraries()


def test_the_version_of_lmms_eval_is_checked_where_scores_are_needed(versions):
    versions(**{"lmms-eval": "0.5.0"})
    preflight.check_libraries()
    error = problems(scoring=True)
    assert error.problems[0].startswith("lmms-eval 0.5.0 is installed, switchkd needs >=")
    assert error.hint == "pip install --no-deps lmms-eval==0.7.3"


@pytest.mark.parametrize(
    ("library", "stand_in", "told"),
    [
        ("loguru", None, "loguru is not installed"),
        ("tenacity", ModuleType("tenacity"), "a library can't be imported: cannot import name"),
    ],
)
def test_a_library_under_lmms_eval_that_fails_is_the_machines_lack(monkeypatch, library, stand_in, told):
    monkeypatch.delitem(sys.modules, HARNESS, raising=False)
    monkeypatch.setitem(sys.modules, library, stand_in)
    with pytest.raises(UserError) as caught:
        score_model.import_harness()
    assert caught.value.problems[0].startswith(told)
    assert (caught.value.code, caught.value.hint[:10]) == (MACHINE, "make setup")


def test_any_failure_inside_a_library_is_reported_and_ours_keep_their_traceback(monkeypatch, tmp_path):
    (tmp_path / "broken_library.py").write_text("raise OSError('libcudart.so.12: cannot open shared object file')")
    monkeypatch.syspath_prepend(tmp_path)
    told = r"libcudart.so.12: .*broken_library.py:1"
    with pytest.raises(UserError, match=told) as caught, import_errors():
        import broken_library  # noqa: F401
    assert caught.value.code == MACHINE
    with pytest.raises(ModuleNotFoundError), import_errors():
        import switchkd_cli.engine.no_such_module  # noqa: F401
