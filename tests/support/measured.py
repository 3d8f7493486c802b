"""Small pairs of models, and what a real step of theirs takes: the plan's figures are compared with it."""

import itertools
import weakref
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers import CLIPVisionConfig, Qwen2Config

from switchkd_cli.engine.batch import Batch, Example, collate
from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models
from switchkd_cli.engine.models.ldpnet import LlavaLdpConfig, LlavaLdpForConditionalGeneration
from switchkd_cli.engine.models.shape import ModelShape, image_tokens_of
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.engine.paths import Paths
from tests.support import tiny
from tests.support.square_inputs import SquareInputs

PARTS = ("vision", "projector", "language")
IMAGE = 9


def pair(width: int = 32, columns: int | None = None) -> Paths:
    """SigLIP, MLP and Qwen2; the teacher is wider and deeper. `columns` is a vocabulary larger than the tokenizer's."""
    vision = {"hidden_size": width, "intermediate_size": 2 * width + 32, "num_hidden_layers": 4}
    vision |= {"image_size": 72, "patch_size": 12}
    student = tiny.model(width, seed=1, vision=vision)
    teacher = tiny.model(width + 32, layers=3, seed=2, vision=vision)
    if columns is not None:
        for model in (student.model, teacher.model):
            model.resize_token_embeddings(columns, mean_resizing=False)
    return Paths(student, teacher, columns or len(student.inputs.processor.tokenizer)).train()


def clip_pair() -> Paths:
    """CLIP, LDPNetV2 and Qwen2 with fewer key heads: four tokens an image."""
    return Paths(_clip(32, 2), _clip(48, 3), 60).train()


def clip_batch() -> Batch:
    """Two examples with an image and one of text, of different lengths."""
    rows = []
    for number, (pictures, words) in enumerate([(1, 11), (1, 7), (0, 15)]):
        tokens = torch.tensor([IMAGE] * 4 * pictures + [20 + i for i in range(words)])
        labels = torch.where(torch.arange(len(tokens)) >= len(tokens) - 5, tokens, -100)
        images = ({"pixel_values": torch.randn(3, 48, 48)},) * pictures
        rows.append(Example(str(number), tokens, labels, torch.zeros_like(tokens), tokens == IMAGE, images))
    return collate(rows, pad_token=0)


def micro_batch(batch: Batch) -> MicroBatch:
    """A batch as the plan describes it; logits are computed at its answers."""
    count, length = batch.input_ids.shape
    positions = int(batch.predicting("answer").sum())
    own = batch.reading("teacher")
    teacher = None if own is batch else micro_batch(own)
    independent = batch.attention.ndim == 4
    masked = independent or not bool(batch.attention.all())
    return MicroBatch(count, len(batch.images), length, positions, masked, independent, teacher)


def models(paths: Paths) -> Models:
    """Student and teachers as the plan describes them."""
    both = {"student": paths.student, **paths.frozen}
    return Models({name: ModelShape(model) for name, model in both.items()}, paths.vocabulary)


def computation(
    paths: Paths, wanted: Collection[str], train: Collection[str], *recomputed: str, **more: Any
) -> Computation:
    """What a stage with these paths computes. `more`: about its models."""
    read = frozenset(paths.known[name] for name in wanted)
    return Computation(replace(models(paths), **more), read, frozenset(train), frozenset(recomputed))


def ways() -> Iterator[tuple[frozenset[str], frozenset[str]]]:
    """Yield every set of paths that an objective can compute, with every set of parts that a gradient then reaches."""
    for paths in ({"student"}, {"student", "teacher"}, {"switch", "teacher"}, {"student", "teacher", "switch"}):
        for count in (1, 2, 3):
            for train in itertools.combinations(PARTS, count):
                reached = {"vision"} if "student" not in paths else set(PARTS)
                if set(train) <= reached and ("vision" in train or "switch" not in paths):
                    yield frozenset(paths), frozenset(train)


def only(paths: Paths, train: frozenset[str]) -> list[torch.nn.Parameter]:
    """Freeze everything except these parts of the student, and return their parameters."""
    paths.requires_grad_(False)
    trained = [p for part in train for p in paths.used_parameters(part)]
    for parameter in trained:
        parameter.requires_grad_(True)
        parameter.grad = None
    return trained


def bytes_left(forward: Callable, *own: torch.nn.Module) -> int:
    """Return the bytes that a forward pass leaves for the backward pass, without weights, each storage once."""
    held = weakref.WeakSet()

    class Held:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # one with its graph would hold what holds it
            held.add(self)

    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
        out = forward()
    weights = {p.untyped_storage().data_ptr() for module in own for p in module.parameters()}
    stores = {h.tensor.untyped_storage().data_ptr(): h.tensor.untyped_storage().nbytes() for h in held}
    del out
    return sum(size for where, size in stores.items() if where not in weights)


def bytes_kept(forward: Callable) -> int:
    """Return the bytes that a forward pass adds, without its outputs', but with what no hook sees."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        out = forward()
    events = watched.profiler.kineto_results.events()
    returned = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in out.values()}
    return sum(e.nbytes() for e in events if e.name() == "[memory]") - sum(returned.values())


def _clip(width: int, layers: int) -> VisionLanguageModel:
    vision = CLIPVisionConfig(
        hidden_size=24, intermediate_size=80, num_hidden_layers=3, num_attention_heads=2, image_size=48, patch_size=12
    )
    text = Qwen2Config(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    config = LlavaLdpConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    return VisionLanguageModel(LlavaLdpForConditionalGeneration(config), SquareInputs(None, image_tokens_of(config)))
