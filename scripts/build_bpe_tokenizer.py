"""Write the playground's other tokenizer, a byte-level BPE of 300 merges: none of its ids is one of the words'. Run once:

    python -m scripts.build_bpe_tokenizer

recipes/unlike_tokenizer.yaml distils a student that reads it from a teacher that reads words.
"""

from itertools import islice

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from scripts.build_tokenizer import FOLDER, SPECIAL, corpus, save

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
    save(tokenizer, TARGET)


if __name__ == "__main__":
    main()
