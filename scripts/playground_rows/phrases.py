"""The phrases of drills and lists in English and Chinese, and those of the package."""

from switchkd_cli.package_data import read_yaml
from switchkd_cli.playground.text.words import PHRASES as OF_PACKAGE

PHRASES: dict[str, dict[str, str]] = {**OF_PACKAGE, **read_yaml(__file__)}


def phrase(name: str, language: str = "en", *words: str) -> str:
    """Return one of `PHRASES` in a language, with these words in their places."""
    return PHRASES[name][language].format(*words)
