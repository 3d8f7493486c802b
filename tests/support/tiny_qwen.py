"""A processor whose tokenizer splits text as Qwen2's does and has its markers, with a vocabulary of a few words."""

import json
import tempfile
from pathlib import Path

from tokenizers import AddedToken
from transformers import LlavaProcessor, Qwen2TokenizerFast, SiglipImageProcessorPil

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>"]
CORPUS = """\
A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and \
polite answers to the user's questions. USER: ASSISTANT: You are a helpful assistant. Answer in one word. A dog.
You
system
user
assistant
How many dogs? How
What is it? What
two two
a dog
"""


def untrained() -> Qwen2TokenizerFast:
    try:
        return Qwen2TokenizerFast()
    except TypeError:  # before transformers 5 it wants files
        with tempfile.TemporaryDirectory() as folder:
            vocabulary, merges = Path(folder) / "vocab.json", Path(folder) / "merges.txt"
            vocabulary.write_text(json.dumps({SPECIAL[0]: 0}))
            merges.write_text("")
            return Qwen2TokenizerFast(str(vocabulary), str(merges))


def processor() -> LlavaProcessor:
    words = untrained().train_new_from_iterator([CORPUS] * 50, vocab_size=600, new_special_tokens=SPECIAL)
    words.add_special_tokens(
        {
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": [AddedToken(marker, special=True, normalized=False) for marker in SPECIAL[1:]],
        }
    )
    pictures = SiglipImageProcessorPil(size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=words,
        patch_size=12,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
    )
