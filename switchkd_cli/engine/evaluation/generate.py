"""A LLaVA model as an answerer: batched greedy generation, each picture encoded once."""

import math
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from transformers import GenerationConfig, LlavaForConditionalGeneration, LlavaProcessor

from switchkd_cli.engine.batch import prepared
from switchkd_cli.engine.evaluation.lmms_model import Answerer, Item, digest

GREY = (127, 127, 127)
KEPT_BYTES = 2**28
"""Visual tokens kept for pictures that come again."""


class Reader(Answerer):
    """Reads pictures and prompts with a checkpoint's own processor and chat template, answers greedily.

    Left padding; answers end at the end-of-sequence token. `blind` puts a mid-grey picture in place of each
    picture: what the model answers without seeing. `positions`: those that the model was made for.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        processor: LlavaProcessor,
        *,
        blind: bool = False,
        positions: int | None = None,
        device: str | None = None,
        **options,
    ) -> None:
        super().__init__(**options)
        self.where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.processor = processor
        self.processor.tokenizer.padding_side = "left"
        self.model = model.to(self.where).eval()
        self.blind = blind
        self.positions = positions or math.inf
        self._seen: dict[str, Tensor] = {}

    def lengths(self, items: Sequence[Item]) -> list[int]:
        """Prompt lengths in tokens."""
        return [len(ids) for ids in self.processor.tokenizer([i.prompt for i in items])["input_ids"]]

    @torch.inference_mode()
    def answer(self, items: Sequence[Item]) -> list[str]:
        shown = [self._shown(item) for item in items]
        visual = self._see([picture for pictures in shown for picture in pictures])
        texts = [self._text(item.prompt, len(p)) for item, p in zip(items, shown, strict=True)]
        lengths, written = self._write(texts, visual, items[0].limit)
        for item, asked, told in zip(items, lengths, self._told(written), strict=True):
            item.at_limit = told > item.limit
            item.too_long = asked + min(told, item.limit) > self.positions
        return self.processor.tokenizer.batch_decode(written, skip_special_tokens=True)

    def _shown(self, item: Item) -> list[Image.Image]:
        if self.blind:
            return [Image.new("RGB", picture.size, GREY) for picture in item.pictures]
        return item.pictures

    def _text(self, prompt: str, pictures: int) -> str:
        """The conversation up to the answer, with an image placeholder for each picture."""
        content = [{"type": "image"}] * pictures + [{"type": "text", "text": prompt}]
        messages = [{"role": "user", "content": content}]
        return self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)

    def _see(self, pictures: Sequence[Image.Image]) -> list[Tensor]:
        """Visual tokens [T, width] of each picture, in order."""
        names = [digest(p) for p in pictures]
        new = {n: p for n, p in zip(names, pictures, strict=True) if n not in self._seen}
        if new and sum(v.nbytes for v in self._seen.values()) > KEPT_BYTES:
            self._seen.clear()
            new = dict(zip(names, pictures, strict=True))
        if new:
            pixels = prepared(self.processor.image_processor, list(new.values()))
            output = self.model.get_image_features(pixels.to(self.where, self.model.dtype))
            tokens = getattr(output, "pooler_output", output)  # the tokens themselves before transformers 5
            self._seen.update(zip(new, tokens, strict=True))
        return [self._seen[n] for n in names]

    def _write(self, texts: Sequence[str], visual: Sequence[Tensor], limit: int) -> tuple[list[int], Tensor]:
        """Lengths of the texts, image placeholders filled with visual tokens, and their new tokens [B, <= limit]."""
        image = self.processor.image_token
        if visual:
            texts = [t.replace(image, image * len(visual[0])) for t in texts]
        words = self.processor.tokenizer
        opened = bool(words.bos_token) and texts[0].startswith(words.bos_token)
        encoded = words(texts, padding=True, add_special_tokens=not opened, return_tensors="pt").to(
            self.where
        )
        embedded = self.model.get_input_embeddings()(encoded["input_ids"])
        if visual:
            places = (encoded["input_ids"] == self.model.config.image_token_id)[..., None]
            embedded = embedded.masked_scatter(places, torch.cat(list(visual)).to(embedded.dtype))
        written = self.model.generate(
            inputs_embeds=embedded,
            attention_mask=encoded["attention_mask"],
            generation_config=self._greedy(limit),
        )
        return encoded["attention_mask"].sum(1).tolist(), written

    def _told(self, written: Tensor) -> list[int]:
        """Tokens of each answer [B, T], its end counted: one more than there are where it has not come to one."""
        ends = torch.as_tensor(self._greedy(1).eos_token_id, device=written.device)
        ended = torch.isin(written, ends)
        return torch.where(ended.any(1), ended.int().argmax(1), written.shape[1]).add(1).tolist()

    def _greedy(self, limit: int) -> GenerationConfig:
        tokenizer = self.processor.tokenizer
        end = self.model.generation_config.eos_token_id
        end = tokenizer.eos_token_id if end is None else end
        pad = tokenizer.pad_token_id
        return GenerationConfig(
            do_sample=False,
            num_beams=1,
            max_new_tokens=limit,
            eos_token_id=end,
            pad_token_id=tokenizer.eos_token_id if pad is None else pad,
        )
