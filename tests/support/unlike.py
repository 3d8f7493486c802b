"""Small tokenizers that have nothing in common, with a chat template each, and tiny LLaVA models that read them."""

import json
import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.data.rows import Rows
from switchkd_cli.engine.data.turns import llava_row
from switchkd_cli.engine.models.llava_parts import design
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.recipe.schema import Parts
from tests.support import tiny

CORPUS = [
    "three red apples at the top left, a dog, a cat and a bus. What is it? How many? Where?",
    "你好，三个红苹果。狗在哪里？",
    "an emoji 🙂👍🏽, an accent é, a tab\tand a line\nbreak",
]
ENDS = {"bpe": "<|im_end|>", "words": "</s>", "bytes": "<eos>", "pieces": "<end>"}
TEMPLATE = (
    "{%%- for m in messages -%%}{{- '%(open)s' + m.role + '\\n' -}}{%%- if m.content is string -%%}{{- m.content -}}"
    "{%%- else -%%}{%%- for p in m.content -%%}{{- '<image>' if p.type == 'image' else p.text -}}{%%- endfor -%%}{%%- endif -%%}"
    "{%%- if m.role == 'assistant' -%%}{{- '%(end)s' -}}{%%- endif -%%}{{- '\\n' -}}{%%- endfor -%%}"
    "{%%- if add_generation_prompt -%%}{{- '%(open)sassistant\\n' -}}{%%- endif -%%}"
)


def _byte_level(size: int, special: list[str]) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=special)
    )
    return made


def _words(special: list[str]) -> Tokenizer:
    made = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Whitespace(), decoders.Fuse()
    made.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=["[UNK]", *special]))
    return made


def _pieces(special: list[str]) -> Tokenizer:
    """SentencePiece's kind: ▁ before words, and what is in none as bytes."""
    found = dict.fromkeys(f"▁{word}" for word in " ".join(CORPUS).split()[::2])
    vocabulary = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *found, "▁", "a", "e", "s"]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(vocabulary)}, [], byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def tokenizer(kind: str, *, merges: int = 60) -> PreTrainedTokenizerFast:
    """A tokenizer of the kind `bpe` (byte-level, few merges), `bytes`, `words` or `pieces`, whose template ends as ENDS says."""
    special = ["<pad>", ENDS[kind], "<image>"]
    made = {
        "bpe": lambda: _byte_level(256 + len(special) + merges, special),
        "bytes": lambda: _byte_level(256 + len(special), special),
        "words": lambda: _words(special),
        "pieces": lambda: _pieces(special),
    }[kind]()
    made.add_special_tokens(special)
    marks = {"open": "" if kind == "words" else "# ", "end": ENDS[kind]}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        eos_token=ENDS[kind],
        additional_special_tokens=["<image>"],
        chat_template=TEMPLATE % marks,
    )


def permuted(of: PreTrainedTokenizerFast, seed: int = 0) -> tuple[PreTrainedTokenizerFast, torch.Tensor]:
    """The same byte-level tokenizer with its ids in another order, and the new id of each old one."""
    text = json.loads(of.backend_tokenizer.to_str())
    order = list(range(len(of)))
    random.Random(seed).shuffle(order)
    text["model"]["vocab"] = {word: order[id] for word, id in text["model"]["vocab"].items()}
    for token in text["added_tokens"]:
        token["id"] = order[token["id"]]
    text["added_tokens"].sort(key=lambda token: token["id"])
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(text)),
        pad_token=of.pad_token,
        eos_token=of.eos_token,
        additional_special_tokens=["<image>"],
        chat_template=of.chat_template,
    )
    return made, torch.tensor(order)


def model(
    folder: Path, of: PreTrainedTokenizerFast, width: int = 16, seed: int = 0, vision: dict | None = None
) -> VisionLanguageModel:
    """A tiny LLaVA that reads this tokenizer's ids. `vision`: what its tower has other than tiny.VISION."""
    of.save_pretrained(folder)
    language = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(seed)
    parts = Parts(
        family="llava",
        vision={"fresh": tiny.VISION | (vision or {})},
        language={"fresh": language | {"num_key_value_heads": 2, "tie_word_embeddings": True}},
        tokenizer=str(folder),
    )
    return design(parts).build().eval()


def conversations(
    student: VisionLanguageModel, teacher: VisionLanguageModel, rows: list[dict], images: Path, **how
) -> Conversations:
    """The rows as both models' own tokens."""
    turns = how.pop("turns", "chained")
    data = Conversations(Rows(rows, llava_row, images=images, turns=turns), student.inputs, **how)
    return data.with_teacher(teacher.inputs, by_bytes=True)
