"""A processor whose tokenizer splits text as Qwen2's does and has its markers, with a vocabulary of a few words."""

from tokenizers import AddedToken
from transformers import LlavaProcessor, Qwen2Tokenizer
from transformers.models.siglip import SiglipImageProcessorPil

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


def processor() -> LlavaProcessor:
    words = Qwen2Tokenizer().train_new_from_iterator(
        [CORPUS] * 50, vocab_size=600, new_special_tokens=SPECIAL
    )
    words.add_special_tokens(
        {
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "extra_special_tokens": [
                AddedToken(marker, special=True, normalized=False) for marker in SPECIAL[1:]
            ],
        }
    )
    pictures = SiglipImageProcessorPil(
        size={"height": 24, "width": 24}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=pictures,
        tokenizer=words,
        patch_size=12,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
    )
