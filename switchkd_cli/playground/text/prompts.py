"""A question, and the prompt in which the stock lmms-eval 0.7.3 task of its style asks a model for it."""

from dataclasses import dataclass

import jinja2

from switchkd_cli.package_data import read_yaml

SHORT = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."
LETTER_ZH = "\n请直接使用所提供的选项字母作为答案回答。"
UNSURE = "\nWhen the provided information is insufficient, respond with 'Unanswerable'."
OPTIONS = "There are several options:"
YES_OR_NO = " Please answer yes or no."
IMAGE_1 = "<image 1>"
LETTERS = "ABCD"

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
_PROMPTS = {style: _ENVIRONMENT.from_string(text) for style, text in read_yaml(__file__).items()}


def prompt(question: Question) -> str:
    """Return exactly what the stock task's `doc_to_text` returns for this question, with its default arguments."""
    lines = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, question.options, strict=False))
    return _PROMPTS.get(question.style, _PROMPTS["other tasks"]).render(vars(question), lines=lines)
