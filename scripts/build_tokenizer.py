"""Write the playground's tokenizer: one id for every word that the playground says. Run once by the maintainers:

    python -m scripts.build_tokenizer

A word is one id wherever it stands (in a sentence, at the start of an answer, after a line break or an option's letter), so
that what is learnt of it in one place is known in the others. A regular plural is its word and an "s". Whatever the
playground doesn't say is written in bytes.
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from scripts.playground_rows.drills import choose, drill
from scripts.playground_rows.lists import list_row
from scripts.playground_rows.words import word_turn
from scripts.playground_rows.write import text_row
from scripts.ship import compact
from switchkd_cli.engine.models.model_folder import edit_json, portable_tokenizer_config
from switchkd_cli.playground.text import questions
from switchkd_cli.playground.text.words import SYMBOLS, plural, say
from switchkd_cli.playground.training_rows import KINDS
from switchkd_cli.playground.world import CONCEPTS, scenes

FOLDER = Path(__file__).resolve().parent.parent / "switchkd_cli" / "playground" / "assets" / "tokenizer"
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>")
STOCK = (
    questions.SHORT,
    questions.LETTER,
    "\n" + questions.LETTER,
    questions.UNSURE,
    "\n" + questions.LETTER_ZH,
    questions.LETTER_ZH,
    " " + questions.OPTIONS,
    questions.YES_OR_NO,
    questions.IMAGE_1,
)
"""Sentences of the stock prompts: one id each, so that prompts are short."""
HAN = "\u4e00-\u9fff"
# What is split off on its own: a line break, a punctuation mark, a run of Chinese (cut into words by the model), a word
# with the sign for the space before it.
PIECES = Regex(rf"\n|▁?[A-Za-z]+|▁?[0-9]|[{HAN}]+|▁|[^\n▁A-Za-z0-9{HAN}]")
# Before a word at the start of a line, and before a letter or digit in Chinese, the sign for a space is put in and, when
# ids are decoded, left out again.
NO_SPACE = rf"(?<=\n)%s(?=[A-Za-z0-9])|(?<=[，{HAN}])%s(?=[A-Z0-9])"
CHINESE = tuple(say(symbol, "zh") for symbol in SYMBOLS)
# Every message: its images first, then its text; an answer ends with <|end|>.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message.content is not string -%}"
    "{%- for part in message.content if part.type == 'image' -%}<image>{%- endfor -%}"
    "{%- endif -%}"
    "{{- '<|' + message.role + '|>' -}}"
    "{%- if message.content is string -%}{{- message.content -}}{%- else -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}"
    "{%- endif -%}"
    "{%- if message.role == 'assistant' -%}{{- '<|end|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)


def corpus() -> Iterator[str]:
    """Yield the playground's texts."""
    for symbol in SYMBOLS:
        yield from (symbol, say(symbol, "zh"))
    yield from map(plural, CONCEPTS)
    for scene in scenes("train", 4000, 0):
        rng = random.Random(scene.id)
        rows = [[make(scene, rng) for _ in range(3)] for make in [*KINDS.values(), drill, choose]]
        rows += [text_row(scene, rng, 4), list_row(rng, 4), [word_turn(rng)]]
        for question, answer in (turn for row in rows for turn in row):
            yield from (question, answer)


def words(text: str) -> Iterator[str]:
    """Yield the pieces that become ids: a regular plural's word, for one, and Chinese names out of Chinese sentences."""
    for sentence in STOCK:
        text = text.replace(sentence, "\0")
    for piece in re.findall(rf"\n|[A-Za-z]+|[0-9]|[{HAN}]+|[^\0\s]", text):
        if re.match(f"[{HAN}]", piece):
            yield from (part for part in re.split(f"({_NAMES_ZH})", piece) if part)
        elif piece.isalnum():
            yield f"▁{piece[:-1] if piece[-1] == 's' and piece[:-1] in CONCEPTS and piece not in CONCEPTS else piece}"
        else:
            yield piece


_NAMES_ZH = "|".join(sorted(CHINESE, key=len, reverse=True))


def vocabulary() -> list[tuple[str, float]]:
    """Return pieces and scores. All score alike, so the fewest pieces are taken; bytes score least."""
    found = dict.fromkeys(word for text in corpus() for word in words(text))
    found |= dict.fromkeys(["▁", "s", "\n"])
    count = [*SPECIAL, *(f"<0x{byte:02X}>" for byte in range(256)), *sorted(found)]
    return [(piece, -10.0 if piece in found else -100.0) for piece in count]


def main() -> None:
    tokenizer = Tokenizer(models.Unigram(vocabulary(), unk_id=0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Prepend("▁"),
            normalizers.Replace(" ", "▁"),
            normalizers.Replace(Regex(r"\A▁▁"), "▁"),  # after an added token
            normalizers.Replace(Regex(NO_SPACE.replace("%s", "")), "▁"),
            normalizers.Replace(Regex(rf"▁(?=[\n{HAN}])"), ""),  # Chinese has no spaces
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(PIECES, "isolated")
    written = [decoders.Replace(Regex(NO_SPACE.replace("%s", "▁")), ""), decoders.Replace("▁", " ")]
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), *written, decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in STOCK])
    save(tokenizer, FOLDER)


def save(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer of the playground's special tokens and chat template."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<image>"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(folder)
    compact(folder / "tokenizer.json")
    edit_json(folder / "tokenizer_config.json", portable_tokenizer_config)
    print(json.dumps({"ids": len(fast), "folder": folder.name}))


if __name__ == "__main__":
    main()
