"""The playground's words and phrases in English and Chinese; English names are the symbols that `say` translates."""

from typing import Any

from switchkd_cli.package_data import read_yaml
from switchkd_cli.playground.world import WORDS

_ZH: dict[str, str] = {name: entry["zh"] for group in WORDS.values() for name, entry in group.items()}
SYMBOLS = tuple(_ZH)

_WORDINGS = read_yaml(__file__, "wordings.yaml")
STYLES: dict[str, dict[str, Any]] = _WORDINGS["styles"]
"""The tasks whose manner of asking the playground has, and that manner."""
ASK: dict[str, dict[str, str]] = _WORDINGS["ask"]
ASK_HINTED: dict[str, dict[str, str]] = _WORDINGS["ask_hinted"]
HINT: dict[str, str] = _WORDINGS["hint"]
PHRASES: dict[str, dict[str, str]] = _WORDINGS["phrases"]


def say(symbol: str, language: str = "en") -> str:
    """Return a concept, category, colour, place or number in a language ("en" or "zh")."""
    return symbol if language == "en" else _ZH.get(symbol, symbol)


def phrase(name: str, language: str = "en", *words: str) -> str:
    """Return one of `PHRASES` in a language, with these words in their places."""
    return PHRASES[name][language].format(*words)


def fill(template: dict[str, str], slots: dict[str, str], language: str = "en") -> str:
    """Return a question from the tables above in a language, its slots filled."""
    return template[language].format(**{slot: say(symbol, language) for slot, symbol in slots.items()})


def with_article(name: str) -> str:
    usual = "an" if name[0] in "aeiou" else "a"
    return f"{WORDS['concepts'].get(name, {}).get('article', usual)} {name}"


def plural(name: str) -> str:
    """Return the plural of a concept or a category."""
    return WORDS["concepts"].get(name, {}).get("plural", f"{name}s")
