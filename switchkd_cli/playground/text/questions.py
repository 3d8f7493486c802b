"""Questions about a scene in the ten benchmarks' manners. `prompt` and `Question` come from prompts.py."""

import random
from collections.abc import Callable

from switchkd_cli.playground.text.facts import FACTS, PLACE_NAMES, Fact, concepts, place_of
from switchkd_cli.playground.text.prompts import IMAGE_1, LETTERS, STYLES, YES_OR_NO, Question, prompt
from switchkd_cli.playground.text.statements import STATEMENTS
from switchkd_cli.playground.text.words import ASK, ASK_HINTED, HINT, fill, say
from switchkd_cli.playground.world import CONCEPTS, Scene

__all__ = ["STYLES", "Question", "ask", "ask_pair", "prompt", "suits"]

ANNOTATORS = 10
UNANSWERABLE = "unanswerable"


def suits(scene: Scene, style: str) -> bool:
    """Whether the style has a question for the scene: textvqa_val needs a sign, others take any scene."""
    return style != "textvqa_val" or scene.digit is not None


def ask(scene: Scene, style: str, rng: random.Random) -> Question:
    """A question in the style, true to the scene.

    Raises KeyError for an unknown style, ValueError where the style does not suit the scene (see `suits`).
    """
    asker = _ASKERS[style]
    if not suits(scene, style):
        raise ValueError(f"{style} has no question for scene {scene.id}: it shows no sign")
    return asker(scene, rng)


def ask_pair(scene: Scene, rng: random.Random) -> tuple[Question, Question]:
    """Two MME questions of one category for one picture: the first is answered yes, the second no."""
    kind, made = _first(
        rng,
        ("existence", "count", "position", "relation", "color", "OCR"),
        lambda kind: (STATEMENTS[kind](scene, rng, True), STATEMENTS[kind](scene, rng, False)),
    )
    return _mme(kind, made[0], "yes"), _mme(kind, made[1], "no")


def _mme(kind: str, text: str, answer: str) -> Question:
    return Question("mme", "position" if kind == "relation" else kind, text + YES_OR_NO, answer)


def _first(rng: random.Random, kinds: tuple[str, ...], make: Callable) -> tuple[str, object]:
    """The first kind, in random order, for which `make` gives no None; and what it gives."""
    for kind in rng.sample(kinds, len(kinds)):
        made = make(kind)
        if made is not None and not (isinstance(made, tuple) and None in made):
            return kind, made
    raise ValueError(f"none of {', '.join(kinds)} can be asked of the scene")


def _stated(style: str, *kinds: str) -> Callable[[Scene, random.Random], Question]:
    def asker(scene: Scene, rng: random.Random) -> Question:
        truth = rng.random() < 0.5
        kind, text = _first(rng, kinds, lambda kind: STATEMENTS[kind](scene, rng, truth))
        answer = "yes" if truth else "no"
        return _mme(kind, text, answer) if style == "mme" else _annotated(Question(style, kind, text, answer))

    return asker


def _annotated(question: Question) -> Question:
    if question.style not in ("textvqa_val", "vizwiz_vqa_val", "vqav2_val"):
        return question
    return Question(
        question.style, question.kind, question.text, question.answer, answers=(question.answer,) * ANNOTATORS
    )


def _open(style: str, *kinds: str) -> Callable[[Scene, random.Random], Question]:
    def asker(scene: Scene, rng: random.Random) -> Question:
        _, fact = _first(rng, kinds, lambda kind: FACTS[kind](scene, rng))
        return _annotated(Question(style, fact.kind, fill(ASK[fact.kind], fact.slots), fact.answer))

    return asker


def _either(
    yes_no_share: float, stated: Callable, opened: Callable
) -> Callable[[Scene, random.Random], Question]:
    return lambda scene, rng: (stated if rng.random() < yes_no_share else opened)(scene, rng)


def _textvqa(scene: Scene, rng: random.Random) -> Question:
    place = place_of(scene.digit)
    wordings = (fill(ASK["number"], {}), "What digit is shown?", f"What number is at the {place}?")
    return _annotated(Question("textvqa_val", "number", rng.choice(wordings), str(scene.digit.value)))


def _vizwiz(scene: Scene, rng: random.Random) -> Question:
    """A casual voice; a quarter of the questions ask for what the picture does not show."""
    answerable = rng.random() >= 0.25
    _, (kind, text, answer) = _first(rng, tuple(_CASUAL), lambda kind: _CASUAL[kind](scene, rng, answerable))
    return _annotated(Question("vizwiz_vqa_val", kind, text, answer))


def _casual_name(scene: Scene, rng: random.Random, answerable: bool) -> tuple[str, str, str] | None:
    filled = {place_of(thing): thing.concept for thing in scene.things}
    taken = {*filled, place_of(scene.digit)} if scene.digit else set(filled)
    places = list(filled) if answerable else [place for place in PLACE_NAMES if place not in taken]
    if not places:
        return None
    place = rng.choice(places)
    wording = rng.choice(("Hi, what is this at the {}?", "Can you tell me what is at the {}?"))
    return "name", wording.format(place), filled.get(place, UNANSWERABLE)


def _casual_neighbour(scene: Scene, rng: random.Random, answerable: bool) -> tuple[str, str, str] | None:
    if answerable:
        beside = [
            fact
            for _ in range(4)
            if (fact := FACTS["neighbour"](scene, rng)) and fact.kind in ("left", "right")
        ]
        if not beside:
            return None
        thing, answer = beside[0].slots["thing"], beside[0].answer
    else:
        thing, answer = rng.choice([name for name in CONCEPTS if name not in concepts(scene)]), UNANSWERABLE
    return "neighbour", f"Can you tell me what is next to the {thing}?", answer


def _casual_number(scene: Scene, rng: random.Random, answerable: bool) -> tuple[str, str, str] | None:
    if answerable != (scene.digit is not None):
        return None
    answer = str(scene.digit.value) if scene.digit else UNANSWERABLE
    return "number", "Hi, what number is this?", answer


_CASUAL = {"name": _casual_name, "neighbour": _casual_neighbour, "number": _casual_number}


def _choice(
    style: str,
    *kinds: str,
    language: str = "en",
    sizes: tuple[int, ...] = (4,),
    hinted: float = 0.0,
    image_1: bool = False,
) -> Callable[[Scene, random.Random], Question]:
    """Multiple choice; the answer's letter is uniform over the options."""

    def asker(scene: Scene, rng: random.Random) -> Question:
        _, fact = _first(rng, kinds, lambda kind: FACTS[kind](scene, rng))
        hint = ""
        text = fill(ASK[fact.kind], fact.slots, language)
        if fact.kind in ASK_HINTED and rng.random() < hinted:
            hint, text = fill(HINT, fact.slots, language), fill(ASK_HINTED[fact.kind], fact.slots, language)
        if image_1:
            text = rng.choice((f"{IMAGE_1} {text}", f"{text} {IMAGE_1}"))
        symbols = _options(fact, rng.choice(sizes), rng)
        options = tuple(say(symbol, language) for symbol in symbols)
        return Question(style, fact.kind, text, LETTERS[symbols.index(fact.answer)], options, hint, language)

    return asker


def _options(fact: Fact, size: int, rng: random.Random) -> list[str]:
    """The answer among others of its pool, shuffled. Other things of the picture come first: they are what a
    careless look finds. The rest is drawn evenly, so that the options alone give nothing away."""
    near = [symbol for symbol in fact.near if symbol != fact.answer]
    far = [symbol for symbol in fact.pool if symbol != fact.answer and symbol not in near]
    others = rng.sample(near, len(near)) + rng.sample(far, len(far))
    options = [fact.answer, *others[: size - 1]]
    return rng.sample(options, len(options))


_SEEN = ("name", "category", "color", "place", "count", "number", "neighbour")

_ASKERS: dict[str, Callable[[Scene, random.Random], Question]] = {
    "mme": _stated("mme", "existence", "count", "position", "relation", "color", "OCR"),
    "pope": _stated("pope", "existence"),
    "gqa": _either(
        0.25,
        _stated("gqa", "position", "relation"),
        _open("gqa", "name", "category", "color", "place", "neighbour"),
    ),
    "mmbench_en_dev": _choice("mmbench_en_dev", *_SEEN, hinted=0.3),
    "mmbench_cn_dev": _choice("mmbench_cn_dev", *_SEEN, language="zh", hinted=0.3),
    "scienceqa_img": _choice("scienceqa_img", "name", "category", "compare", sizes=(2, 3, 4), hinted=0.5),
    "textvqa_val": _textvqa,
    "vizwiz_vqa_val": _vizwiz,
    "mmmu_val": _choice("mmmu_val", "name", "category", "count", "number", image_1=True),
    "vqav2_val": _either(
        0.3, _stated("vqav2_val", "category", "existence", "count"), _open("vqav2_val", "name", "count")
    ),
}
