"""Processors: tokenizers, chat templates and image processors of models, as transformers reads them without torchvision; what is
added when they are read, and when they are saved; image processors made and compared."""

import copy
import inspect
from importlib.resources import files
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers import AutoTokenizer, LlavaProcessor, PretrainedConfig, PreTrainedTokenizerBase, ProcessorMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING_NAMES

from switchkd_cli.engine.hub import NO_CODE, CheckpointFolder, as_user_error
from switchkd_cli.engine.models.checkpoint_files import FIELDS
from switchkd_cli.errors import UserError

IMAGE = "<image>"
"""The token that stands for an image in the tokenizers of LLaVA models."""
TOKENIZERS = ("tokenizer.json", "vocab.json", "tokenizer.model")
EMBEDDINGS = ("embed_tokens.weight", "lm_head.weight")  # ends of the tensors' names


IN_PARTS = files(__package__).joinpath("messages_in_parts.jinja").read_text(encoding="utf-8")
"""Jinja that turns plain-text messages into parts, written before a template that reads only messages in parts.

lmms-eval's `llava_hf` sends "<image>\\n" and the question as plain text: a template that doesn't expect this drops the
question, or puts the image where the model never saw one in training. This code and our templates use only what
llama.cpp's engines, @huggingface/jinja and minijinja support too: no product of a list or a text, no `dict(...)`, no
`replace` filter."""
LAST = IN_PARTS.splitlines(keepends=True)[-1]
"""The template itself follows this line, also in files that older versions wrote."""

PIL = {"backend": "pil"}  # the other backend needs torchvision

FILE = "preprocessor_config.json"
PROBES = (96, 48), (48, 96)  # pixels of a wide and of a tall image
NEAR, EQUAL = 0.05, 1e-3
"""Shares of an image's range of values. Another resampling differs by 0.01; padding, cropping, scaling by 0.25 or more."""


def read_tokenizer(checkpoint: CheckpointFolder) -> PreTrainedTokenizerBase:
    """Return the tokenizer with `<image>` and a padding token; each is added where it is missing.

    A new token takes the next free id. Raises UserError where there is no tokenizer.
    """
    if not checkpoint.has(*TOKENIZERS):  # transformers would make an empty one
        hint = f"name one: {checkpoint.who.split('.')[0]}.tokenizer=..."
        raise UserError(f"{checkpoint}: no tokenizer there", hint=hint)
    with as_user_error(f"{checkpoint}: no readable tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, **NO_CODE)
    if tokenizer.convert_tokens_to_ids(IMAGE) in (None, tokenizer.unk_token_id):
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]}, False)  # False: keep the others
    return with_padding(tokenizer)


def with_padding(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Return the tokenizer with a padding token. Padding is masked, so the unknown or the end token will do."""
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    return tokenizer


def own_template(*holders: ProcessorMixin | PreTrainedTokenizerBase) -> str | None:
    """Return the chat template of the first holder that has one; of several named templates, the default."""
    templates = (holder.chat_template for holder in holders)
    defaults = (template.get("default") if isinstance(template, dict) else template for template in templates)
    return next(filter(None, defaults), None)


def widen(state: dict[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Return the state with at least `rows` rows in the embeddings and the head.

    An unpadded checkpoint has no row for an added token. New rows are the mean of the old ones: a logit that is the mean
    of the others is never the largest.
    """
    for name, table in state.items():
        if name.endswith(EMBEDDINGS) and len(table) < rows:
            mean = table.float().mean(0, keepdim=True).to(table.dtype)
            state[name] = torch.cat([table, mean.expand(rows - len(table), -1)])
    return state


def to_be_saved(processor: ProcessorMixin, template: str | None, end: str | None) -> Any:
    """Return a copy of the processor with the chat template and the end token of the training, to be saved.

    `template` is Jinja and `end` the token that ends an answer; None keeps the processor's own. Tools look for the
    template in the processor or in the tokenizer, so both get it.
    """
    saved: Any = copy.deepcopy(processor)
    if isinstance(saved, LlavaProcessor):
        template = template or saved.chat_template
        template = template and IN_PARTS + template.rpartition(LAST)[2]
        # SigLIP's has none; token counts are read from it
        if getattr(saved.image_processor, "crop_size", None) is None:
            saved.image_processor.crop_size = dict(saved.image_processor.size)
    if template:
        saved.chat_template = saved.tokenizer.chat_template = template
    if end is not None:
        saved.tokenizer.eos_token = end
    saved.tokenizer.padding_side = "left"  # generation in batches needs it
    return saved


def read_image_processor(checkpoint: CheckpointFolder):
    """Return the image processor that is stored in a folder."""
    with as_user_error(f"{checkpoint}: no readable {FILE}"):
        return transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, **PIL, **NO_CODE)


def default_image_processor(vision: PretrainedConfig):
    """Return the image processor that towers of this kind are published with, at the config's image size.

    SigLIP: resize to a square, mean and standard deviation 0.5. CLIP: resize the short side, crop the centre, CLIP's
    own mean and standard deviation.
    """
    side = vision.image_size
    square = {"height": side, "width": side}
    if vision.model_type == "clip_vision_model":
        return transformers.CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size=square)
    return transformers.SiglipImageProcessorPil(
        size=square, crop_size=square, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )


def with_square_padding(processor):
    """Return the image processor that first pads images to squares with the mean colour, then does as `processor`."""
    size = processor.size if processor.size.get("shortest_edge") else {"shortest_edge": processor.size["height"]}
    cut = getattr(processor, "crop_size", None) or processor.size
    kept = {name: getattr(processor, name) for name in ("resample", "image_mean", "image_std")}
    return transformers.LlavaImageProcessorPil(do_pad=True, size=dict(size), crop_size=dict(cut), **kept)


def probes() -> list[Image.Image]:
    """Return a wide and a tall test image.

    They are colour gradients, so that each place has its own colour: padding, cropping or squashing shows clearly,
    another resampling hardly at all.
    """
    images = []
    for width, height in PROBES:
        across, down = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
        images.append(Image.fromarray(np.stack([across, down, 255 - across], -1).astype(np.uint8)))
    return images


def prepared_probes(image_processor) -> Tensor:
    """Return the `probes`, prepared by an image processor, [2, 3, H, W].

    Raises UserError for a processor that fails, or makes images of a size that no tower takes, or values that are not
    finite.
    """
    most = FIELDS["limits"]["image_size"]
    with as_user_error("the image processor can't prepare an image"), np.errstate(all="ignore"):
        for size in (image_processor.size, getattr(image_processor, "crop_size", None)):
            sides = {name: side for name, side in dict(size or {}).items() if side is not None}
            if not all(1 <= side <= most for side in sides.values()):
                raise UserError(f"the image processor makes images of {sides}, {most} is the most")
        pixels = image_processor(probes(), return_tensors="pt")["pixel_values"]
    if not pixels.isfinite().all():
        mean, std = normalisation(image_processor)
        raise UserError(f"the image processor makes values that are not finite (mean {mean}, std {std})")
    return pixels


def normalisation(image_processor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the mean and the standard deviation of each channel."""
    return tuple(image_processor.image_mean or ()), tuple(image_processor.image_std or ())


VIDEO = "video_preprocessor_config.json"  # where older releases keep a processor's part for videos


class _Unread(dict):
    """The settings of a part for videos or sound, which is saved again as it was."""

    __getattr__ = dict.get


def read_processor(checkpoint: CheckpointFolder, model_type: str) -> ProcessorMixin:
    """Return a folder's processor, of transformers' class for this type of model. Raises UserError where it can't be read.

    Its parts for videos and sound are left as settings: AutoProcessor would refuse them where torchvision isn't installed.
    """
    with as_user_error(f"{checkpoint}: no readable processor"):
        kind: Any = getattr(transformers, PROCESSOR_MAPPING_NAMES[model_type])
        fields = kind.get_processor_dict(checkpoint.folder, **NO_CODE)[0]
        if checkpoint.has(VIDEO):
            fields.setdefault("video_processor", checkpoint.json(VIDEO))
        given = {name: fields[name] for name in inspect.signature(kind.__init__).parameters if name in fields}
        given |= {part: _Unread(given.get(part) or {}) for part in kind.get_attributes()}
        given["tokenizer"] = with_padding(transformers.AutoTokenizer.from_pretrained(checkpoint.folder, **NO_CODE))
        given["image_processor"] = transformers.AutoImageProcessor.from_pretrained(checkpoint.folder, **PIL, **NO_CODE)
        processor = kind.__new__(kind)
        processor.check_argument_for_proper_class = lambda part, value: None  # it knows no settings
        kind.__init__(processor, **given)
        del processor.check_argument_for_proper_class
        processor.chat_template = own_template(processor, processor.tokenizer)
    return processor
