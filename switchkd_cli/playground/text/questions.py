"""Questions about a scene, in the manner of each of the ten benchmarks, and the prompts in which stock tasks ask them.

The prompts are those of lmms-eval 0.7.3, one for each style.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import jinja2

from switchkd_cli.package_data import read_yaml
from switchkd_cli.playground.text.facts import FACTS, STATEMENTS, Fact
from switchkd_cli.playground.text.words import ASK, ASK_HINTED, HINT, STYLES, fill, say
from switchkd_cli.playground.world import CONCEPTS, NAMES, PLACE_NAMES, Scene, drawn

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_ZH = "\n请直接使用所提供的选项字母作为答案回答。"
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
OPTIONS = "There are several options:"
YES_OR_NO = " Please answer yes or no."
IMAGE_1 = "<image 1>"
LETTERS = "ABCD"
ANNOTATED = ("textvqa_val", "vizwiz_vqa_val", "vqav2_val")
ANNOTATORS = 10
UNANSWERABLE = "unanswerable"
STYLE_WEIGHTS = {"gqa": 1.5, "vqav2_val": 1.5, "textvqa_val": 2.0}  # styles with more to learn are more frequent
Made = TypeVar("Made")

Turn = tuple[str, str]
"""What the user says, and the answer."""


@dataclass(frozen=True)
class Question:
    """One question about one scene, in the words of a benchmark's data.

    `style` is the task, `kind` what is asked for (MME: its category), `answer` the text that the metric expects: a
    word, "yes" or "no", or the letter of `options`. `answers` are the ten annotators' answers where the task has them.
    `hint` is empty where the data has none.
    """

    style: str
    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    hint: str = ""
    language: str = "en"
    answers: tuple[str, ...] = ()


_ENVIRONMENT = jinja2.Environment()
_ENVIRONMENT.globals |= {name: text for name, text in globals().items() if name.isupper()}
_PROMPTS = {style: _ENVIRONMENT.from_string(text) for style, text in read_yaml(__file__, "prompts.yaml").items()}


def prompt(question: Question) -> str:
    """Return exactly what the stock task's `doc_to_text` returns for this question, with its default arguments."""
    lines = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, question.options, strict=False))
    return _PROMPTS.get(question.style, _PROMPTS["other tasks"]).render(vars(question), lines=lines)


def suits(scene: Scene, style: str) -> bool:
    """Return whether the style has a question for the scene: textvqa_val needs a sign, the others take any scene."""
    return style != "textvqa_val" or scene.digit is not None


def ask(scene: Scene, style: str, rng: random.Random) -> Question:
    """Return a question in the style, whose answer is true to the scene.

    Raises KeyError for an unknown style, ValueError where the style does not suit the scene (see `suits`).
    """
    manner = STYLES[style]
    if "choice" in manner:
        return _choice(scene, style, rng)
    if "yes_no" in manner and ("open" not in manner or rng.random() < manner["share"]):
        truth = rng.random() < 0.5
        kind, text = _first(rng, manner["yes_no"], lambda kind: STATEMENTS[kind](scene, rng, truth))
        return _question(style, kind, text, "yes" if truth else "no")
    if "open" in manner:
        _, fact = _first(rng, manner["open"], lambda kind: FACTS[kind](scene, rng))
        return _question(style, fact.kind, fill(ASK[fact.kind], fact.slots), fact.answer)
    return _textvqa(scene, rng) if style == "textvqa_val" else _vizwiz(scene, rng)


def question_turn(scene: Scene, rng: random.Random, language: str | None = None) -> Turn:
    """Return a question of any style, or of any in a language, worded as its benchmark's prompt, and its answer."""
    styles = [style for style, manner in STYLES.items() if language in (None, manner.get("language", "en"))]
    style = rng.choices(styles, weights=[STYLE_WEIGHTS.get(style, 1.0) for style in styles])[0]
    question = ask(scene, style if suits(scene, style) else "gqa", rng)
    return prompt(question), question.answer


def ask_pair(scene: Scene, rng: random.Random) -> tuple[Question, Question]:
    """Return two MME questions of one category about one image: the answer to the first is yes, to the second no."""

    def both(kind: str) -> tuple[str, str] | None:
        yes, no = STATEMENTS[kind](scene, rng, True), STATEMENTS[kind](scene, rng, False)
        return None if yes is None or no is None else (yes, no)

    kind, (yes, no) = _first(rng, STYLES["mme"]["yes_no"], both)
    return _question("mme", kind, yes, "yes"), _question("mme", kind, no, "no")


def _first(rng: random.Random, kinds: Sequence[str], make: Callable[[str], Made | None]) -> tuple[str, Made]:
    """Return the first kind, in random order, for which `make` gives something, and what it gives."""
    for kind in rng.sample(kinds, len(kinds)):
        if (made := make(kind)) is not None:
            return kind, made
    raise ValueError(f"none of {', '.join(kinds)} can be asked about the scene")


def _question(style: str, kind: str, text: str, answer: str) -> Question:
    """Return a question without options; MME has its own names, and some styles have annotators."""
    if style == "mme":
        return Question(style, "position" if kind == "relation" else kind, text + YES_OR_NO, answer)
    return Question(style, kind, text, answer, answers=(answer,) * (ANNOTATORS * (style in ANNOTATED)))


def _textvqa(scene: Scene, rng: random.Random) -> Question:
    if scene.digit is None:
        raise ValueError(f"textvqa_val has no question for scene {scene.id}: it shows no sign")
    wordings = (fill(ASK["number"], {}), "What digit is shown?", f"What number is at the {scene.digit.place}?")
    return _question("textvqa_val", "number", rng.choice(wordings), scene.digit.name)


def _vizwiz(scene: Scene, rng: random.Random) -> Question:
    """Return a casual question; a quarter of them ask for what the image does not show."""
    answerable = rng.random() >= 0.25

    def text_and_answer(kind: str) -> tuple[str, str] | None:
        if kind == "name":
            concepts = {thing.place: thing.name for thing in scene.things}
            taken = {item.place for item in scene.items}
            places = list(concepts) if answerable else [place for place in PLACE_NAMES if place not in taken]
            if not places:
                return None
            place = rng.choice(places)
            wording = rng.choice(("Hi, what is this at the {}?", "Can you tell me what is at the {}?"))
            return wording.format(place), concepts.get(place, UNANSWERABLE)
        if kind == "neighbour":
            if not answerable:
                thing = drawn(NAMES, rng, without=scene.concepts)
                return f"Can you tell me what is next to the {thing}?", UNANSWERABLE
            facts = [fact for _ in range(4) if (fact := FACTS["neighbour"](scene, rng))]
            fact = next((fact for fact in facts if fact.kind in ("left", "right")), None)
            if fact is None:
                return None
            return f"Can you tell me what is next to the {fact.slots['thing']}?", fact.answer
        if answerable != (scene.digit is not None):
            return None
        return "Hi, what number is this?", scene.digit.name if scene.digit else UNANSWERABLE

    kind, (text, answer) = _first(rng, ("name", "neighbour", "number"), text_and_answer)
    return _question("vizwiz_vqa_val", kind, text, answer)


def _choice(scene: Scene, style: str, rng: random.Random) -> Question:
    """Return a multiple choice; the answer's letter is uniform over the options."""
    manner = STYLES[style]
    language = manner.get("language", "en")
    _, fact = _first(rng, manner["choice"], lambda kind: FACTS[kind](scene, rng))
    hint, text = "", fill(ASK[fact.kind], fact.slots, language)
    if fact.kind in ASK_HINTED and rng.random() < manner.get("hinted", 0.0):
        hint, text = fill(HINT, fact.slots, language), fill(ASK_HINTED[fact.kind], fact.slots, language)
    if "image_1" in manner:
        text = rng.choice((f"{IMAGE_1} {text}", f"{text} {IMAGE_1}"))
    symbols = _options(fact, rng.choice(manner.get("sizes", [4])), rng)
    options = tuple(say(symbol, language) for symbol in symbols)
    return Question(style, fact.kind, text, LETTERS[symbols.index(fact.answer)], options, hint, language)


def _options(fact: Fact, size: int, rng: random.Random) -> list[str]:
    """Return the answer among other symbols of its pool, shuffled.

    One of the others is in the image, if it can be, because a careless look finds it. The rest is drawn as answers are, so
    that the options alone don't reveal the answer.
    """
    near = [symbol for symbol in fact.near if symbol != fact.answer]
    options = [fact.answer, *rng.sample(near, min(1, len(near)))][:size]
    while len(options) < min(size, len(fact.pool)):
        if fact.pool[0] in CONCEPTS:  # by their frequency
            options.append(drawn(fact.pool, rng, without=[*options, *near]))
        else:
            options.append(rng.choice([symbol for symbol in fact.pool if symbol not in (*options, *near)]))
    return rng.sample(options, len(options))
