"""A question, and the text in which the stock lmms-eval 0.7.3 task of its style puts it to a model."""

from collections.abc import Callable
from dataclasses import dataclass

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_ZH = "\n请直接使用所提供的选项字母作为答案回答。"
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
OPTIONS = "There are several options:"
YES_OR_NO = " Please answer yes or no."
IMAGE_1 = "<image 1>"
LETTERS = "ABCD"


@dataclass(frozen=True)
class Question:
    """One question about one scene, in the words of a benchmark's data row.

    `style` is the task, `kind` what is asked (for MME: its category), `answer` the text the metric expects: a
    word, "yes" or "no", or the letter of `options`. `answers` are the ten annotators' answers where the task
    has them. `hint` is empty where the data row has none.
    """

    style: str
    kind: str
    text: str
    answer: str
    options: tuple[str, ...] = ()
    hint: str = ""
    language: str = "en"
    answers: tuple[str, ...] = ()


def _lettered(question: Question) -> str:
    return "\n".join(f"{letter}. {option}" for letter, option in zip(LETTERS, question.options, strict=False))


def _short(question: Question) -> str:
    return question.text + SHORT


def _mme(question: Question) -> str:
    return question.text.replace(YES_OR_NO, "") + SHORT


def _textvqa(question: Question) -> str:
    return question.text.capitalize() + SHORT


def _vizwiz(question: Question) -> str:
    return question.text.capitalize() + UNSURE + SHORT


def _scienceqa(question: Question) -> str:
    context = f"Context: {question.hint}\n" if question.hint else ""
    return f"{context}{question.text}\n{_lettered(question)}{LETTER}"


def _mmmu(question: Question) -> str:
    return f"{question.text}\n{_lettered(question)}\n{LETTER}"


def _mmbench(question: Question) -> str:
    # The stock Chinese task reads the English yaml, so its options are introduced in English too.
    hint = f"{question.hint} " if question.hint else ""
    ending = LETTER_ZH if question.language == "zh" else LETTER
    return f"{hint}{question.text} {OPTIONS}\n{_lettered(question)}\n{ending}"


_PROMPTS: dict[str, Callable[[Question], str]] = {
    "mme": _mme,
    "pope": _short,
    "gqa": _short,
    "mmbench_en_dev": _mmbench,
    "mmbench_cn_dev": _mmbench,
    "scienceqa_img": _scienceqa,
    "textvqa_val": _textvqa,
    "vizwiz_vqa_val": _vizwiz,
    "mmmu_val": _mmmu,
    "vqav2_val": _short,
}
STYLES = tuple(_PROMPTS)


def prompt(question: Question) -> str:
    """Exactly what the stock task's `doc_to_text` returns for this question, by its default arguments."""
    return _PROMPTS[question.style](question)
