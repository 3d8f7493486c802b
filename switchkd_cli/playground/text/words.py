"""The playground's words and phrases in English and Chinese; English names are the symbols that `say` translates."""

from switchkd_cli.playground.world import CATEGORIES, COLOURS, CONCEPTS, PLACES

_ZH: dict[str, str] = (
    {name: concept.zh for name, concept in CONCEPTS.items()}
    | CATEGORIES
    | {name: colour.zh for name, colour in COLOURS.items()}
    | {place.name: place.zh for place in PLACES.values()}
    | {"thing": "东西"}
)

SYMBOLS = tuple(_ZH)

# The question for a fact, by its kind. Slots: {thing}, {things} (the plural), {place}.
ASK: dict[str, dict[str, str]] = {
    "name": {"en": "What is at the {place}?", "zh": "{place}是什么？"},
    "category": {"en": "What kind of thing is at the {place}?", "zh": "{place}是哪一类？"},
    "color": {"en": "What color is the background?", "zh": "背景是什么颜色？"},
    "place": {"en": "Where is the {thing}?", "zh": "{thing}在哪里？"},
    "count": {"en": "How many {things} are there?", "zh": "有几个{thing}？"},
    "number": {"en": "What number is on the sign?", "zh": "牌子上的数字是几？"},
    "left": {"en": "What is to the left of the {thing}?", "zh": "{thing}的左边是什么？"},
    "right": {"en": "What is to the right of the {thing}?", "zh": "{thing}的右边是什么？"},
    "above": {"en": "What is above the {thing}?", "zh": "{thing}的上面是什么？"},
    "below": {"en": "What is below the {thing}?", "zh": "{thing}的下面是什么？"},
    "leftmost": {"en": "Which is on the left?", "zh": "哪个在左边？"},
    "topmost": {"en": "Which is at the top?", "zh": "哪个在上面？"},
}
# The same with the place in a separate hint, for the styles that have hints.
HINT = {"en": "Look at the {place}.", "zh": "看{place}。"}
ASK_HINTED: dict[str, dict[str, str]] = {
    "name": {"en": "What is there?", "zh": "那里是什么？"},
    "category": {"en": "What kind of thing is there?", "zh": "那里是哪一类？"},
}


def say(symbol: str, language: str = "en") -> str:
    """Return a concept, category, colour, place or number in a language ("en" or "zh")."""
    return symbol if language == "en" else _ZH.get(symbol, symbol)


def fill(template: dict[str, str], slots: dict[str, str], language: str = "en") -> str:
    """Return a question from the tables above in a language, its slots filled."""
    return template[language].format(**{slot: say(symbol, language) for slot, symbol in slots.items()})


def with_article(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"


def plural(name: str) -> str:
    """Return the plural of a concept or a category; all categories take an s."""
    return CONCEPTS[name].plural if name in CONCEPTS else f"{name}s"
