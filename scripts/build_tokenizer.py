"""Train the playground's tokenizer on the texts that the playground makes. Run once by the maintainers:

    python scripts/build_tokenizer.py

A byte-level BPE, so any text can be written. The world's names (in English with and without the space before
them) and the benchmarks' stock sentences are added tokens: a name is one id wherever it stands, and prompts
are short. The disadvantage: a longer word that begins with a name is cut after it, like " cat" in " category".
"""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from switchkd_cli.engine.models.llava_save import edit_json, portable_tokenizer_config
from switchkd_cli.playground.text import prompts
from switchkd_cli.playground.text.captions import description_turn
from switchkd_cli.playground.text.lessons import lesson
from switchkd_cli.playground.text.prompts import prompt
from switchkd_cli.playground.text.questions import ask, suits
from switchkd_cli.playground.text.words import STYLES, SYMBOLS, plural, say
from switchkd_cli.playground.world import CONCEPTS, scenes

FOLDER = Path(__file__).resolve().parent.parent / "switchkd_cli" / "playground" / "assets" / "tokenizer"
SIZE = 768
SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>", "<image>")
STOCK = (
    prompts.SHORT,
    prompts.LETTER,
    "\n" + prompts.LETTER,
    prompts.UNSURE,
    "\n" + prompts.LETTER_ZH,
    " " + prompts.OPTIONS,
    prompts.YES_OR_NO,
    prompts.IMAGE_1,
    *(f"\n{letter}. " for letter in prompts.LETTERS),
)
# A name at the start of an answer or an option: a whole word, or "hat" would cut "What".
WORDS = SYMBOLS
# Within a sentence, with the space before it; a plural's s follows as an id of its own.
SPACED = (
    *(f" {symbol}" for symbol in SYMBOLS),
    *(f" {plural(name)}" for name in CONCEPTS if not plural(name).startswith(name)),
)
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
    """Yield the playground's texts, cut where an added token will be, so that no merge is learnt inside one."""
    for scene in scenes("train", 3000, 0):
        rng = random.Random(scene.id)
        for style in STYLES:
            if suits(scene, style):
                question = ask(scene, style, rng)
                yield from _cut(prompt(question))
                yield from _cut(question.answer)
        for make in (description_turn, lesson, lesson):
            for text in make(scene, rng):
                yield from _cut(text)


def _cut(text: str) -> list[str]:
    for token in sorted((*STOCK, *SPACED, *CHINESE), key=len, reverse=True):
        text = text.replace(token, "\0")
    text = re.sub(rf"\b({'|'.join(sorted(WORDS, key=len, reverse=True))})\b", "\0", text)
    return [piece for piece in text.split("\0") if piece]


def main() -> None:
    added = [AddedToken(text, normalized=False) for text in (*STOCK, *SPACED, *CHINESE)]
    added += [AddedToken(text, normalized=False, single_word=True) for text in WORDS]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE - len(added),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.add_tokens(added)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<image>"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(FOLDER)
    edit_json(FOLDER / "tokenizer_config.json", portable_tokenizer_config)
    print(json.dumps({"ids": len(fast), "folder": str(FOLDER.name)}))


if __name__ == "__main__":
    main()
