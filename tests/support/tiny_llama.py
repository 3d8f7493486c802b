"""A processor whose tokenizer splits text as Llama 2's does: a space before each text, `<s>` at its start, bytes."""

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import LlavaProcessor, PreTrainedTokenizerFast

from switchkd_cli.engine.models.processors import with_padding
from tests.support import tiny_qwen

SPECIAL = ["<unk>", "<s>", "</s>", "<image>"]
SPACE = "▁"
SPLITS = {
    "normalizer": (normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)]), None),
    "legacy": (None, pre_tokenizers.Metaspace(SPACE, "always", split=False)),
    "first": (None, pre_tokenizers.Metaspace(SPACE, "first", split=False)),
}
"""How tokenizer.json says where a space is added: as Llama 2 is published, and as transformers reads it since 5."""


def words(split: str = "normalizer") -> PreTrainedTokenizerFast:
    text = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    text.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, "always")
    text.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    bytes_ = [f"<0x{i:02X}>" for i in range(256)]
    lines = [line for line in tiny_qwen.CORPUS.splitlines() for _ in range(50)]
    text.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=600, special_tokens=[*SPECIAL, *bytes_]))
    text.normalizer, text.pre_tokenizer = SPLITS[split]
    text.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return with_padding(
        PreTrainedTokenizerFast(
            tokenizer_object=text,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            extra_special_tokens=["<image>"],
        )
    )


def processor(split: str = "normalizer") -> LlavaProcessor:
    made = tiny_qwen.processor()
    made.tokenizer = words(split)
    return made
