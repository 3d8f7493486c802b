"""A question, and the prompt in which the stock lmms-eval 0.7.3 task of its style asks a model for it."""

from dataclasses import dataclass

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


def prompt(question: Question) -> str:
    """Return exactly what the stock task's `doc_to_text` returns for this question, with its default arguments."""
    text, hint = question.text, question.hint
    options = "\n".join(f"{letter}. {o}" for letter, o in zip(LETTERS, question.options, strict=False))
    match question.style:
        case "textvqa_val":
            return text.capitalize() + SHORT
        case "vizwiz_vqa_val":
            return text.capitalize() + UNSURE + SHORT
        case "scienceqa_img":
            return (f"Context: {hint}\n" if hint else "") + f"{text}\n{options}{LETTER}"
        case "mmmu_val":
            return f"{text}\n{options}\n{LETTER}"
        case "mmbench_en_dev" | "mmbench_cn_dev":
            # The stock Chinese task reads the English yaml, so its options are introduced in English too.
            ending = LETTER_ZH if question.language == "zh" else LETTER
            return (f"{hint} " if hint else "") + f"{text} {OPTIONS}\n{options}\n{ending}"
        case _:
            return text.replace(YES_OR_NO, "") + SHORT
