"""Low-rank adapters on L's linear layers, trained instead of its weights: LoRA (2106.09685) and DoRA (2402.09353), by peft."""

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import nn

from switchkd_cli.engine.hub import forbid_kernels
from switchkd_cli.engine.models.low_bits import PackedLinear, pack
from switchkd_cli.errors import UserError, did_you_mean
from switchkd_cli.recipe.schema import Lora

if TYPE_CHECKING:
    from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel

NAME = "default"  # peft's, of a model's only adapters
FOLDER = "adapters"
MARK = ".lora_"  # in the names of the adapters' parameters, and of nothing else
IN_PEFT = "base_model.model."  # begins the names in peft's files


def adapted(model: "VisionLanguageModel", spec: Lora) -> dict[str, nn.Linear]:
    """Return the linear layers that get adapters, by their names below L's `layers`.

    Raises UserError where a kind that the recipe names is none of theirs.
    """
    linear = {name: of for name, of in model.language.layers.named_modules() if isinstance(of, nn.Linear)}
    kinds = {name.rpartition(".")[2] for name in linear}
    where = "lora.layers: the student's language model has no such linear layers"
    unknown = [f"{where}, got {name!r}{did_you_mean(name, kinds)}" for name in spec.layers if name not in kinds]
    if unknown:
        raise UserError(unknown, hint=f"it has {', '.join(sorted(kinds))}")
    return {name: of for name, of in linear.items() if name.rpartition(".")[2] in (spec.layers or kinds)}


def adapter_sizes(model: "VisionLanguageModel", spec: Lora) -> tuple[int, int]:
    """Return how many parameters the adapters have, and how many numbers DoRA's keep of a position for the backward pass.

    The latter is an upper bound; LoRA's rank numbers are left out. The model may be without weights. Raises the UserError of `adapted`.
    """
    sizes = [(of.in_features, of.out_features) for of in adapted(model, spec).values()]
    count = sum(spec.rank * (inputs + outputs) + spec.dora * outputs for inputs, outputs in sizes)
    return count, 2 * spec.dora * sum(outputs for _, outputs in sizes)


def add_adapters(model: "VisionLanguageModel", spec: Lora, seed: int) -> None:
    """Add adapters that change nothing yet to L, its linear layers packed first where `spec` has `bits`.

    They are drawn from the seed. Raises the UserError of `adapted`.
    """
    forbid_kernels()  # peft imports bitsandbytes
    from peft import LoraConfig, inject_adapter_in_model

    kinds = sorted({name.rpartition(".")[2] for name in adapted(model, spec)})
    if spec.bits is not None:
        pack(model.language.layers, spec.bits)
    layers = next(name for name, module in model.model.named_modules() if module is model.language.layers)
    # the whole name: a tower may have layers of the same kinds
    target = rf"{re.escape(layers)}\..*\.({'|'.join(kinds)})"
    sizes: dict[str, Any] = {
        "r": spec.rank,
        "lora_alpha": spec.scale,
        "lora_dropout": spec.dropout,
        "use_dora": spec.dora,
    }
    vars(model.model).pop("peft_config", None)  # of an earlier stage
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inject_adapter_in_model(LoraConfig(target_modules=target, **sizes), model.model)


def save_adapters(model: "VisionLanguageModel", folder: Path) -> None:
    """Write the adapters, if there are any, as a folder that peft loads for the model that they were added to."""
    state = {name: of.contiguous() for name, of in model.model.state_dict().items() if MARK in name}
    if state:
        folder.mkdir()
        named = {IN_PEFT + name.replace(f".{NAME}", ""): of for name, of in state.items()}
        save_file(named, folder / "adapter_model.safetensors")
        config = copy.copy(model.model.peft_config[NAME])
        config.inference_mode = True
        config.save_pretrained(folder)


def merge(model: "VisionLanguageModel") -> dict[str, nn.Module]:
    """Make the adapters part of L's weights, its layers plain ones; return the others that were there, by name."""
    named = [(name, of) for name, of in model.model.named_modules() if not name.endswith(".base_layer")]
    layers = {name: of for name, of in named if isinstance(of, PackedLinear) or hasattr(of, "lora_A")}
    for name, layer in layers.items():
        model.model.set_submodule(name, _plain(layer))
    return layers


@contextmanager
def merged(model: "VisionLanguageModel") -> Iterator[None]:
    """Inside the block, L is as `merge` leaves it."""
    layers = merge(model)
    try:
        yield
    finally:
        for name, layer in layers.items():
            model.model.set_submodule(name, layer)


def _plain(layer: Any) -> nn.Linear:
    if isinstance(layer, PackedLinear):
        return layer.plain()
    one = copy.deepcopy(layer)
    if isinstance(one.base_layer, PackedLinear):
        one.base_layer = one.base_layer.plain()  # peft adds to weights in place
    one.merge()
    return one.base_layer
