"""Write the playground's other tokenizer, a byte-level BPE of 300 merges: none of its ids is one of the words'. Run once:

    python -m scripts.build_bpe_tokenizer

recipes/unlike_tokenizer.yaml distils a student that reads it from a teacher that reads words.
"""

import json
from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from scripts.build_tokenizer import CHAT_TEMPLATE, FOLDER, SPECIAL, corpus
from scripts.ship import compact
from switchkd_cli.engine.models.model_folder import edit_json, portable_tokenizer_config

TARGET = FOLDER.with_name("tokenizer-bpe")
MERGES, TEXTS = 300, 60_000


def main() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(SPECIAL) + len(alphabet) + MERGES
    how = {"vocab_size": size, "initial_alphabet": alphabet, "special_tokens": list(SPECIAL), "show_progress": False}
    tokenizer.train_from_iterator(islice(corpus(), TEXTS), trainers.BpeTrainer(**how))
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>", "<image>"],
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )
    fast.save_pretrained(TARGET)
    compact(TARGET / "tokenizer.json")
    edit_json(TARGET / "tokenizer_config.json", portable_tokenizer_config)
    print(json.dumps({"ids": len(fast), "folder": TARGET.name}))


if __name__ == "__main__":
    main()
