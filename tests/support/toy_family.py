"""A second family of models, made up for the tests: images of any size, ragged visual tokens, 2-D position ids.

V reads each image by itself, patch by patch; P puts two neighbouring patches together; L is a small Qwen2 that is given
a visual token's column besides its place in the text. Marks around an image say where it begins and ends.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL.Image import Image
from torch import Tensor, nn
from transformers import (
    AutoProcessor,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.siglip.modeling_siglip import SiglipEncoderLayer

from switchkd_cli.engine.batch import Batch, ImageInput, PerImage, together
from switchkd_cli.engine.hub import CheckpointFolder
from switchkd_cli.engine.inputs import InputProcessor, PreparedImage
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.layer_forwards import recompute_layers
from switchkd_cli.engine.models.shape import ModelShape, count_parameters
from switchkd_cli.engine.models.vision_language_model import ProjectedImage, VisionLanguageModel
from switchkd_cli.engine.weights import check_weights, load_weights
from switchkd_cli.errors import UserError
from switchkd_cli.planning.estimate import PairFact
from switchkd_cli.recipe.named_files import ASSETS
from switchkd_cli.recipe.schema import Parts

NAME = "toy"
PATCH = 8
COLUMNS = 16  # the most patches that lie next to one another


class ToyConfig(PretrainedConfig):
    """`vision_width` of V, `width` of L, layers of each."""

    model_type = NAME

    def __init__(self, vision_width=16, width=16, layers=2, vocab_size=0, image_token=0, **more):
        (self.image_token, self.vision_width, self.width, self.layers, self.vocab_size) = (
            image_token,
            vision_width,
            width,
            layers,
            vocab_size,
        )
        super().__init__(**more)

    def vision(self) -> SiglipVisionConfig:
        return SiglipVisionConfig(
            hidden_size=self.vision_width, intermediate_size=2 * self.vision_width, num_attention_heads=2
        )

    def language(self) -> Qwen2Config:
        return Qwen2Config(
            vocab_size=self.vocab_size,
            hidden_size=self.width,
            intermediate_size=2 * self.width,
            num_hidden_layers=self.layers,
            num_attention_heads=2,
            num_key_value_heads=2,
        )


class ToyModel(PreTrainedModel):
    """Everything that has weights."""

    config_class = ToyConfig

    def __init__(self, config: ToyConfig) -> None:
        super().__init__(config)
        vision = config.vision()
        vision._attn_implementation = "eager"
        self.patches = nn.Linear(3 * PATCH**2, config.vision_width)
        self.places = nn.Embedding(COLUMNS, config.vision_width)
        self.encoder = nn.ModuleList(SiglipEncoderLayer(vision) for _ in range(2))
        self.merger = nn.Sequential(
            nn.Linear(2 * config.vision_width, config.width), nn.GELU(), nn.Linear(config.width, config.width)
        )
        self.columns = nn.Embedding(COLUMNS, config.width)
        self.language = Qwen2ForCausalLM(config.language())
        self.generation_config = GenerationConfig()
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=0.2)

    def get_output_embeddings(self) -> nn.Module:
        return self.language.lm_head

    def forward(self, input_ids: Tensor, images: Sequence[Tensor], attention_mask: Tensor) -> Tensor:
        """Logits [B, T, V], written without the functions below: what they are compared with."""
        visual, columns = [], []
        for image in images:
            patches = [
                (image[:, y : y + PATCH, x : x + PATCH].flatten(), x // PATCH)
                for y in range(0, image.shape[1], PATCH)
                for x in range(0, image.shape[2], PATCH)
            ]
            seen = torch.stack([self.patches(pixels) + self.places.weight[x] for pixels, x in patches])[None]
            for layer in self.encoder:
                seen = layer(seen, attention_mask=None)
            visual.append(self.merger(seen.reshape(len(patches) // 2, -1)))
            columns += [x // 2 for _, x in patches[::2]]
        embedded = self.language.get_input_embeddings()(input_ids).clone()
        image_token = self.config.image_token
        embedded[input_ids == image_token] = torch.cat(visual) + self.columns.weight[columns]
        return self.language(inputs_embeds=embedded, attention_mask=attention_mask).logits


class ToyInputs(InputProcessor):
    """Images keep their size, to whole pairs of patches; they are written with a mark before and behind them."""

    chained_only = ""
    seam = None

    def __init__(self, processor: ProcessorMixin | None, config: ToyConfig | None) -> None:
        self.processor, self.config = processor, config

    @property
    def image_token(self) -> int:
        return self.tokenizer.convert_tokens_to_ids(self.image_text)

    def prepare(self, images: Sequence[Image]) -> list[PreparedImage]:
        return [self._prepared(image) for image in images]

    def _prepared(self, image: Image) -> PreparedImage:
        columns = max(2, image.width // (2 * PATCH) * 2)
        rows = max(1, image.height // PATCH)
        pixels = np.asarray(image.convert("RGB").resize((columns * PATCH, rows * PATCH)), np.float32) / 255
        text = "<|user|>" + self.image_text * (rows * columns // 2) + "<|assistant|>"
        return PreparedImage({"pixels": torch.from_numpy(pixels).permute(2, 0, 1)}, text)

    def position(self, input_ids: Tensor, turn: Tensor, images: Sequence[ImageInput]) -> Tensor:
        """[2, T]: the place in the text, and the column of a visual token (0 for text)."""
        columns = torch.zeros_like(input_ids)
        of_images = [
            torch.arange(rows * pairs) % pairs
            for rows, pairs in ((i["pixels"].shape[1] // PATCH, i["pixels"].shape[2] // PATCH // 2) for i in images)
        ]
        columns[input_ids == self.image_token] = torch.cat(of_images) if of_images else columns[:0]
        return torch.stack([torch.arange(len(input_ids)), columns])


class Toy(VisionLanguageModel):
    """The toy model as V, P and L."""

    model: ToyModel
    inputs: ToyInputs
    sharded = False

    @property
    def parts(self) -> dict[str, tuple[nn.Module, ...]]:
        model = self.model
        return {
            "vision": (model.patches, model.places, model.encoder),
            "projector": (model.merger,),
            "language": (model.columns, model.language),
        }

    def used_parameters(self, part: str) -> dict[str, nn.Parameter]:
        inside = [id(p) for module in self.parts[part] for p in module.parameters()]
        return {name: p for name, p in self.model.named_parameters() if id(p) in inside}

    @property
    def widths(self) -> dict[str, int]:
        config = self.model.config
        return {"features": config.vision_width, "tokens": config.width, "attention": 2}

    def blank_image(self) -> ImageInput:
        return {"pixels": torch.zeros(3, PATCH, 2 * PATCH, device=self.model.device)}

    def encode(self, images: Sequence[ImageInput]) -> PerImage:
        if not images:
            return torch.zeros(0, 2, self.model.config.vision_width)
        with recompute_layers(self.model.encoder if "vision" in self.recomputed_parts else ()):
            return together([self._encode(image["pixels"].to(self.model.dtype)) for image in images])

    def _encode(self, pixels: Tensor) -> Tensor:
        """[3, H, W] -> [F, width of V], row by row."""
        patches = pixels.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH)  # [3, rows, columns, PATCH, PATCH]
        columns = torch.arange(patches.shape[2], device=pixels.device)
        features = self.model.patches(patches.permute(1, 2, 0, 3, 4).flatten(2)) + self.model.places(columns)
        features = features.flatten(0, 1)[None]
        for layer in self.model.encoder:
            features = layer(features, attention_mask=None)
        return features[0]

    def project(self, features: PerImage, images: Sequence[ImageInput] = ()) -> PerImage:
        if isinstance(features, Tensor):
            return self.model.merger(features.unflatten(1, (-1, 2)).flatten(2))
        return together([self.model.merger(each.unflatten(0, (-1, 2)).flatten(1)) for each in features])

    def hidden_states(self, batch: Batch, tokens: PerImage, keep: Tensor) -> Tensor:
        language = self.model.language.model
        with recompute_layers(language.layers if "language" in self.recomputed_parts else ()):
            return language(
                inputs_embeds=self._embed(batch.input_ids, batch.image, batch.position[1], tokens),
                attention_mask=batch.attention.long(),
                position_ids=batch.position[0],
                use_cache=False,
            ).last_hidden_state[keep]

    def _embed(self, ids: Tensor, image: Tensor, columns: Tensor, tokens: PerImage) -> Tensor:
        embedded = self.model.language.get_input_embeddings()(ids)
        if len(tokens):
            flat = torch.cat(list(tokens)).to(embedded.dtype)
            embedded = embedded.masked_scatter(image[..., None], flat)
        return embedded + image[..., None] * self.model.columns(columns)

    def attention(self, batch: Batch, tokens: PerImage) -> PerImage:
        """No attention: uniform over an image's tokens, so that its losses have something ragged to read."""
        length = batch.input_ids.shape[1]
        return together([each.new_full((length, len(each), 2), 1 / len(each)) for each in tokens])

    def mean_attention(self, batch: Batch) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def same_vision(self, other: VisionLanguageModel) -> bool:
        ours, theirs = (model.used_parameters("vision") for model in (self, other))
        return all(torch.equal(ours[name], theirs[name]) for name in ours)

    def generate(
        self, texts: Sequence[str], images: Sequence[Sequence[ProjectedImage]], generation: GenerationConfig
    ) -> tuple[list[int], Tensor]:
        answers, lengths = [], []
        for text, shown in zip(texts, images, strict=True):
            (text,) = self.inputs.with_images([text], [image.prepared.text for image in shown])
            ids = self.inputs.tokenizer(text, add_special_tokens=False)["input_ids"]
            lengths.append(len(ids))
            given = [(image.tokens, image.prepared.inputs) for image in shown]
            answers.append(self._continued(ids, given, generation))
        return lengths, self._padded(answers, generation)

    def continued(self, ids, mask, images, generation, logits_processor=()):
        images, answers = list(images), []
        for row, real in zip(ids, mask, strict=True):
            prompt, shown = row[real.bool()], []
            while sum(len(tokens) for tokens, _ in shown) < (prompt == self.inputs.image_token).sum():
                shown.append(images.pop(0))
            answers.append(self._continued(prompt.tolist(), shown, generation, logits_processor))
        return self._padded(answers, generation)

    def _padded(self, answers: list[list[int]], generation: GenerationConfig) -> Tensor:
        longest, pad = max(map(len, answers)), generation.pad_token_id
        return torch.tensor([answer + [pad] * (longest - len(answer)) for answer in answers])

    def _continued(
        self, ids: list[int], shown: Sequence[tuple], generation: GenerationConfig, processors: Sequence = ()
    ) -> list[int]:
        ends = generation.eos_token_id
        answer: list[int] = []
        while len(answer) < generation.max_new_tokens:
            given = torch.tensor(ids + answer)
            image = given == self.inputs.image_token
            place, columns = self.inputs.position(given, given, [inputs for _, inputs in shown])
            embedded = self._embed(given[None], image[None], columns[None], tuple(tokens for tokens, _ in shown))
            hidden = self.model.language.model(inputs_embeds=embedded, position_ids=place[None]).last_hidden_state
            scores = self.logits(hidden[0, -1:])
            for processor in processors:
                scores = processor(given[None], scores)
            answer.append(int(scores.argmax()))
            if answer[-1] in (ends if isinstance(ends, list) else [ends]):
                break
        return answer

    def save(
        self, folder: Path, *, template: str | None = None, end: str | None = None, weights: bool = True
    ) -> list[str]:
        folder.mkdir(parents=True, exist_ok=True)
        state = self.model.state_dict()
        self.model.save_pretrained(folder, state_dict=state if weights else dict(list(state.items())[:1]))
        self.inputs.processor.save_pretrained(folder)
        return []


@dataclass(frozen=True)
class ToyBlueprint(Blueprint):
    """A toy model before its weights are read."""

    def wrap(self, model: PreTrainedModel) -> Toy:
        return Toy(model, self.inputs)

    def problems(self) -> Iterator[str]:
        yield from ()

    def facts(self, student: Blueprint, users: Sequence[str] = ()) -> Iterator[PairFact]:
        widths = (getattr(model.config, "vision_width", None) for model in (student, self))
        yield PairFact.of("vision width", *widths, "impossible", "give both the same tower")


class ToyFamily:
    """See `family.Family`."""

    def recognises(self, config: Mapping) -> bool:
        return config.get("model_type") == NAME

    def read(self, checkpoint: CheckpointFolder) -> ToyBlueprint:
        if not self.recognises(checkpoint.json("config.json")):
            raise UserError(f"{checkpoint} is no toy")
        check_weights(checkpoint)
        config = ToyConfig(**json.loads((checkpoint.folder / "config.json").read_text()))
        inputs = ToyInputs(AutoProcessor.from_pretrained(checkpoint.folder, backend="pil"), config)

        def weights(dtype: str) -> ToyModel:
            return load_weights(ToyModel, checkpoint, dtype, config=config)

        return ToyBlueprint(config, inputs, weights)

    def from_parts(self, spec: Parts, who: str) -> ToyBlueprint:
        raise UserError(f"{who}: toys aren't put together from parts")

    def published_config(self, spec: Parts, who: str, published) -> None:
        return None

    def usage(self, config: Mapping) -> str:
        return "A toy."

    def skeleton(self, config: ToyConfig) -> Toy:
        with torch.device("meta"):
            return Toy(ToyModel(config), ToyInputs(None, config))

    def shape(self, config: ToyConfig) -> ModelShape:
        vision, language = config.vision(), config.language()
        seen, width = config.vision_width, config.width
        weights = (
            4 * seen**2 + 2 * seen * vision.intermediate_size,
            4 * width**2 + 3 * width * language.intermediate_size,
        )
        same = {"positions": 16, "attended": 16, "patches": 16, "norms": 2, "input_norm": False, "gated": False}
        tower = {"width": seen, "inner": vision.intermediate_size, "weights": weights[0], "layers": 2}
        tower |= same | {"values": 3 * PATCH**2, "activation": vision.hidden_act}
        matrices = {"first": 2 * seen * width, "second": width**2, "input": 2 * seen, "hidden": width}
        heads = {"heads": 2, "queries": width, "keys": width, "norms": 2, "last": 0, "vocabulary": config.vocab_size}
        inner = {"width": width, "inner": language.intermediate_size, "weights": weights[1], "layers": config.layers}
        made = object.__new__(ModelShape)  # the sizes without a model of transformers
        made.total, made.trainable = count_parameters(self.skeleton(config))
        made.features, made.any_size, made.padded = 16, False, False
        made.vision, made.language = SimpleNamespace(**tower), SimpleNamespace(**heads | inner)
        made.projector = SimpleNamespace(**matrices, places=8, tokens=8, width=width, convolution=0, frozen=0)
        return made


TOY = ToyFamily()


def model(width: int = 16, seed: int = 0, vision_width: int = 16) -> Toy:
    """A toy of a few thousand parameters with the playground's tokenizer."""
    torch.manual_seed(seed)
    processor = AutoProcessor.from_pretrained(ASSETS / "teacher", backend="pil")
    tokenizer = processor.tokenizer
    image_token = tokenizer.convert_tokens_to_ids(processor.image_token)
    config = ToyConfig(vision_width, width, vocab_size=len(tokenizer), image_token=image_token)
    return Toy(ToyModel(config), ToyInputs(processor, config)).eval()
