"""Check and read a checkpoint's weights: from safetensors, or from pickles where these are allowed."""

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from switchkd_cli.engine.hub import CONFIGS_ONLY, NO_CODE, CheckpointFolder, as_user_error, one_line
from switchkd_cli.errors import MACHINE, UserError, for_each

SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
NUMBER = re.compile(r"\.\d+\.")  # of a layer, in a tensor's name
SHOWN = 5  # tensors named in an error
BROKEN = "the training that wrote them broke down, or the file is damaged: take an earlier checkpoint or fetch it again"

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)


def check_weights(*checkpoint: CheckpointFolder) -> None:
    """Raise UserError, naming every problem, unless the weight files are complete and of a kind that may be read.

    It reads the headers of safetensors files, and nothing of pickles.
    """
    for_each(() if CONFIGS_ONLY.get() else checkpoint, _check_files)


def _check_files(checkpoint: CheckpointFolder) -> None:
    if checkpoint.has("adapter_config.json"):
        raise UserError(f"{checkpoint}: holds LoRA adapters, not a whole model: merge them first")
    if damaged := next(filter(None, map(_damage, weight_files(checkpoint))), None):
        raise UserError(f"{checkpoint}: {damaged}", hint="copy or fetch the checkpoint again")


def weight_files(checkpoint: CheckpointFolder) -> list[Path]:
    """Return a checkpoint's weight files: safetensors where there are any."""
    for name in (SAFE, PICKLED) if checkpoint.allow_pickle else (SAFE,):
        if checkpoint.has(name):
            return [checkpoint.folder / name]
        if checkpoint.has(f"{name}.index.json"):
            return _shards(checkpoint, f"{name}.index.json")
    pickles = sorted(file.name for pattern in PICKLES for file in checkpoint.folder.glob(pattern))
    if pickles and not checkpoint.allow_pickle:
        raise UserError(
            f"{checkpoint}: only pickled weights ({pickles[0]}), which could run code when read",
            hint=f"save the model as {SAFE}: model.save_pretrained(folder) in transformers does; or allow reading "
            "its tensors, and nothing else: allow_pickle: true next to the model's name, --allow-pickle of switchkd eval",
        )
    raise UserError(f"{checkpoint}: no weights ({SAFE}) there", hint="name a folder that a whole model was saved to")


def _shards(checkpoint: CheckpointFolder, index: str) -> list[Path]:
    """Return the files that an index names. Raises UserError where it names none, or one in another folder."""
    weight_map = checkpoint.json(index).get("weight_map")
    shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
    if not shards or not all(isinstance(shard, str) and shard == Path(shard).name for shard in shards):
        raise UserError(f"{checkpoint}: {index} names no files next to it")
    return [checkpoint.folder / shard for shard in sorted(set(shards))]


def read_tensors(checkpoint: CheckpointFolder) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint by its stored name, memory-mapped from the files rather than copied.

    Pickles are read by `torch.load(weights_only=True)`: one that holds anything except tensors is refused.
    """
    files = weight_files(checkpoint)
    return {name: tensor for file in files for name, tensor in _file_tensors(file, checkpoint).items()}


def is_finite(tensor: Tensor) -> bool:
    """Return whether a tensor has no NaN or infinite value. One pass without a second tensor: 0.5 s for 10^9 values."""
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    return all(math.isfinite(extreme) for extreme in tensor.detach().aminmax())


def load_weights(
    model_class: type[AnyModel],
    checkpoint: CheckpointFolder,
    dtype: str = "float32",
    *,
    state: Mapping[str, Tensor] | None = None,
    parts: Sequence[CheckpointFolder] = (),
    **options: Any,
) -> AnyModel:
    """Return the model with its stored weights, which are in transformers' own layout.

    `state`: tensors with the model's own names, in place of the stored ones; they were read from `parts`. Raises UserError
    where tensors are missing or of another shape (they would silently stay random), where config.json leaves out layers or
    biases that are stored (it would be another model), and where tensors hold non-finite values (every answer would be wrong).
    """
    if state is None:
        files = weight_files(checkpoint)
        stored_bytes = sum(file.stat().st_size for file in files)
        options["use_safetensors"] = files[0].suffix == ".safetensors"
    else:
        stored_bytes = sum(tensor.nbytes for tensor in state.values())
        options["state_dict"] = dict(state)
    with as_user_error(f"{checkpoint}: no readable config"):
        config = options.get("config") or AutoConfig.from_pretrained(checkpoint.folder, **NO_CODE)
        check_memory(model_class, config, str(checkpoint), dtype, stored_bytes=stored_bytes)
    with as_user_error(f"{checkpoint}: no readable weights"):
        model, report = model_class.from_pretrained(
            checkpoint.folder if state is None else None,
            dtype=dtype,
            output_loading_info=True,
            weights_only=True,
            **NO_CODE,
            ignore_mismatched_sizes=True,  # not ignored: they are reported in our words
            **options,
        )
    problems = []
    if missing := sorted(report["missing_keys"]):
        problems.append(f"{checkpoint}: {len(missing)} tensors are not in the weights, such as {missing[0]}")
    if misshapen := sorted(report["mismatched_keys"]):
        tensor, shape, expected = misshapen[0]
        shapes = f"{list(shape)}, config.json says {list(expected)}"
        problems.append(f"{checkpoint}: {len(misshapen)} tensors of another shape: {tensor} is {shapes}")
    if left := sorted(_left_of_own_layers(model, report["unexpected_keys"])):
        problems.append(
            f"{checkpoint}: {len(left)} tensors have no place in what config.json describes, such as {left[0]}"
        )
    if problems:
        raise UserError(problems, hint="the weights and config.json are not of one model")
    named = (*model.named_parameters(), *model.named_buffers())
    if broken := [name for name, tensor in named if not is_finite(tensor)]:
        found = _non_finite_tensors(parts or (checkpoint,))
        raise UserError(found or f"{checkpoint}: {broken[0]} is not finite as {dtype}", hint=BROKEN)
    return model


def _left_of_own_layers(model: PreTrainedModel, unread: Iterable[str]) -> Iterator[str]:
    """Yield the tensors of layers and biases that the model would have in another size; others are of no part that it has."""
    own = {name for name, _ in model.named_parameters()}
    kinds = {NUMBER.sub(".", name) for name in own}
    for name in unread:
        weight = f"{name.removesuffix('bias')}weight"
        if (NUMBER.search(name) and NUMBER.sub(".", name) in kinds) or (name.endswith(".bias") and weight in own):
            yield name


def check_memory(
    model_class: type, config: PretrainedConfig, who: str, dtype: str = "float32", *, stored_bytes: int | None = None
) -> None:
    """Raise UserError where the model can't fit in this machine's memory, or has more parameters than stored bytes.

    It counts on a model without memory (device "meta"); the random state doesn't change.
    """
    make = getattr(model_class, "from_config", model_class)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        count = sum(parameter.numel() for parameter in make(config).parameters())
    if stored_bytes is not None and count > stored_bytes:  # a parameter takes at least one byte
        problem = f"{who}: config.json describes {count:,} parameters, the weights are {stored_bytes:,} bytes"
        raise UserError(problem, hint="the weights and config.json are not of one model")
    # "auto" is the dtype of the stored weights
    needed = (stored_bytes or 0) if dtype == "auto" else count * getattr(torch, dtype).itemsize
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        space = f"{needed >> 30:,} GiB, this machine has {memory >> 30:,}"
        raise UserError(f"{who}: {count:,} parameters take {space}", code=MACHINE)


def _non_finite_tensors(parts: Sequence[CheckpointFolder]) -> list[str]:
    """Return a line for each tensor with non-finite values, under its name in the files; slow, because it counts them."""
    counts = [
        (f"{one}: {file.name}: {name}", int((~tensor.isfinite()).sum()), tensor.numel())
        for one in parts
        for file in weight_files(one)
        for name, tensor in _file_tensors(file, one).items()
        if not is_finite(tensor)
    ]
    problems = [f"{name}: {count:,} of its {size:,} values are NaN or infinite" for name, count, size in counts]
    more = [f"... and {len(problems) - SHOWN} more tensors"] if len(problems) > SHOWN else []
    return problems[:SHOWN] + more


def _file_tensors(file: Path, checkpoint: CheckpointFolder) -> dict[str, Tensor]:
    with as_user_error(f"{checkpoint}: {file.name}: no readable weights"):
        if file.suffix == ".safetensors":
            return load_file(file)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
        except UnpicklingError:
            problem = f"{checkpoint}: {file.name} holds more than tensors, and was not read: it could run code"
            raise UserError(problem, hint=f"ask the author of the file for {SAFE}") from None
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"{checkpoint}: {file.name} is not a mapping of names to tensors")
    return content


def _damage(file: Path) -> str | None:
    """Return why a weight file can't be read, or None."""
    if not isfile(file):
        return f"{file.name} is missing"
    if file.suffix != ".safetensors":
        return None if file.stat().st_size else f"{file.name} is empty"
    try:
        with safe_open(file, "pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{file.name} is damaged or cut short ({one_line(error)})"
