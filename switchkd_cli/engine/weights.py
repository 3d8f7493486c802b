"""Weights: known to be whole before anything is built, and read from safetensors unless pickles are allowed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from os.path import isfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from switchkd_cli.engine.hub import NO_CODE, Stored, as_user_error, one_line, weights_needed
from switchkd_cli.errors import MACHINE, UserError

ADAPTERS = "adapter_config.json"
SAFE, PICKLED = "model.safetensors", "pytorch_model.bin"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SHOWN = 5  # tensors named in an error
BROKEN = "the training that wrote them broke down, or the file is damaged: take an earlier checkpoint, or fetch it again"

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)


def check_weights(*stored: Stored) -> None:
    """Raises UserError, naming all of them, unless the weights are whole files of a kind that may be read.

    Of safetensors files the headers are read, of pickles nothing.
    """
    problems: list[str] = []
    hint = "copy or fetch the checkpoint again"
    for one in stored if weights_needed() else ():
        try:
            if one.has(ADAPTERS):
                raise UserError(f"{one}: holds LoRA adapters, not a whole model: merge them first")
            files = weight_files(one)
        except UserError as error:
            problems += error.problems
            hint = error.hint
        else:
            damaged = next(filter(None, map(_damage, files)), None)
            problems += [f"{one}: {damaged}"] if damaged else []
    if problems:
        raise UserError(problems, hint=hint)


def weight_files(stored: Stored) -> list[Path]:
    """The files of a checkpoint's weights; safetensors where there are any."""
    for name in (SAFE, PICKLED) if stored.allow_pickle else (SAFE,):
        if stored.has(name):
            return [stored.folder / name]
        if stored.has(f"{name}.index.json"):
            return _shards(stored, f"{name}.index.json")
    pickled = sorted(file.name for pattern in PICKLES for file in stored.folder.glob(pattern))
    if pickled and not stored.allow_pickle:
        raise UserError(
            f"{stored}: only pickled weights ({pickled[0]}), which could run code when read",
            hint=f"save the model as {SAFE}: model.save_pretrained(folder) in transformers does; or allow reading "
            "its tensors, and nothing else: allow_pickle: true beside the model's name, --allow-pickle of switchkd eval",
        )
    raise UserError(
        f"{stored}: no weights ({SAFE}) there", hint="name a folder that a whole model was saved to"
    )


def _shards(stored: Stored, index: str) -> list[Path]:
    """The files that an index names. Raises UserError where it names none, or one that lies elsewhere."""
    named = stored.json(index).get("weight_map")
    shards = list(named.values()) if isinstance(named, dict) else []
    if not shards or not all(isinstance(shard, str) and shard == Path(shard).name for shard in shards):
        raise UserError(f"{stored}: {index} names no files beside it")
    return [stored.folder / shard for shard in sorted(set(shards))]


def read_tensors(stored: Stored) -> dict[str, Tensor]:
    """Every tensor of the checkpoint by its stored name, mapped from the files rather than copied to memory.

    Pickles are read by `torch.load(weights_only=True)`: one that holds anything but tensors is refused.
    """
    return {name: tensor for file in weight_files(stored) for name, tensor in _held(file, stored).items()}


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds neither NaN nor an infinite value. One pass without a second tensor: 0.5 s for 10^9 values."""
    if not (tensor.is_floating_point() and tensor.numel()):
        return True
    return all(math.isfinite(end) for end in tensor.detach().aminmax())


def load_weights(
    model_class: type[AnyModel], stored: Stored, dtype: str = "float32", **options: Any
) -> AnyModel:
    """The model with the weights that are stored for it, in transformers' own layout.

    Raises UserError where tensors are absent or of another shape: they would stay random, silently; and where they
    hold values that are not finite: every answer would be wrong.
    """
    files = weight_files(stored)
    safe = files[0].suffix == ".safetensors"
    with as_user_error(f"{stored}: no readable config"):
        config = options.get("config") or AutoConfig.from_pretrained(stored.folder, **NO_CODE)
        check_memory(model_class, config, str(stored), dtype, held=sum(file.stat().st_size for file in files))
    return _loaded(model_class, stored, stored.folder, dtype, (stored,), use_safetensors=safe, **options)


def take_weights(
    model_class: type[AnyModel],
    stored: Stored,
    state: Mapping[str, Tensor],
    dtype: str = "float32",
    *,
    parts: Sequence[Stored] = (),
    **options,
) -> AnyModel:
    """The model with the tensors of `state`, which are named as the model's own and were read from `parts`.

    Raises as `load_weights` does.
    """
    held = sum(tensor.nbytes for tensor in state.values())
    with as_user_error(f"{stored}: no readable config"):
        check_memory(model_class, options["config"], str(stored), dtype, held=held)
    return _loaded(model_class, stored, None, dtype, parts or (stored,), state_dict=dict(state), **options)


def check_memory(
    model_class: type, config: PretrainedConfig, who: str, dtype: str = "float32", *, held: int | None = None
) -> None:
    """Raises UserError where this machine could never hold the model, or its `held` bytes of weights never be all of it.

    Counted on a model without memory; the random state stays as it was.
    """
    make = getattr(model_class, "from_config", model_class)
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        count = sum(parameter.numel() for parameter in make(config).parameters())
    if held is not None and count > held:  # a byte is the least that a parameter takes
        raise UserError(
            f"{who}: config.json describes {count:,} parameters, the weights are {held:,} bytes",
            hint="the weights and config.json are not of one model",
        )
    # "auto" is the dtype that they are stored in
    needed = (
        held
        if dtype == "auto" and held is not None
        else count * getattr(torch, "float32" if dtype == "auto" else dtype).itemsize
    )
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > memory:
        raise UserError(
            f"{who}: {count:,} parameters take {needed >> 30:,} GiB, this machine has {memory >> 30:,}",
            code=MACHINE,
        )


def _loaded(
    model_class: type[AnyModel],
    stored: Stored,
    where: Path | None,
    dtype: str,
    parts: Sequence[Stored],
    **options,
) -> AnyModel:
    with as_user_error(f"{stored}: no readable weights"):
        model, told = model_class.from_pretrained(
            where,
            dtype=dtype,
            output_loading_info=True,
            weights_only=True,
            **NO_CODE,
            ignore_mismatched_sizes=True,  # not ignored: told below, in our words
            **options,
        )
    _check_complete(stored, sorted(told["missing_keys"]), sorted(told["mismatched_keys"]))
    held = (*model.named_parameters(), *model.named_buffers())
    if broken := [name for name, tensor in held if not is_finite(tensor)]:
        raise UserError(_not_finite(parts) or f"{stored}: {broken[0]} is not finite as {dtype}", hint=BROKEN)
    return model


def _check_complete(stored: Stored, absent: list[str], misshapen: Iterable[tuple]) -> None:
    problems = []
    if absent:
        problems.append(f"{stored}: {len(absent)} tensors are not in the weights, such as {absent[0]}")
    if misshapen := list(misshapen):
        tensor, theirs, wanted = misshapen[0]
        shapes = f"{list(theirs)}, config.json says {list(wanted)}"
        problems.append(f"{stored}: {len(misshapen)} tensors of another shape: {tensor} is {shapes}")
    if problems:
        raise UserError(problems, hint="the weights and config.json are not of one model")


def _not_finite(parts: Sequence[Stored]) -> list[str]:
    """The files' tensors with values that are not finite, as they are named there; slow, as it counts."""
    counts = [
        (f"{one}: {file.name}: {name}", int((~tensor.isfinite()).sum()), tensor.numel())
        for one in parts
        for file in weight_files(one)
        for name, tensor in _held(file, one).items()
        if not is_finite(tensor)
    ]
    problems = [
        f"{name}: {count:,} of its {size:,} values are NaN or infinite" for name, count, size in counts
    ]
    more = [f"... and {len(problems) - SHOWN} more tensors"] if len(problems) > SHOWN else []
    return problems[:SHOWN] + more


def _held(file: Path, stored: Stored) -> dict[str, Tensor]:
    with as_user_error(f"{stored}: {file.name}: no readable weights"):
        return _safe(file) if file.suffix == ".safetensors" else _unpickled(file, stored)


def _safe(file: Path) -> dict[str, Tensor]:
    with safe_open(file, "pt") as held:
        return {name: held.get_tensor(name) for name in held.keys()}  # noqa: SIM118 (not a mapping)


def _unpickled(file: Path, stored: Stored) -> dict[str, Tensor]:
    try:
        held = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zipfile(file))
    except UnpicklingError:
        raise UserError(
            f"{stored}: {file.name} holds more than tensors, and was not read: it could run code",
            hint=f"ask whoever made it for {SAFE}",
        ) from None
    if not isinstance(held, dict) or not all(isinstance(value, Tensor) for value in held.values()):
        raise UserError(f"{stored}: {file.name} is not a mapping of names to tensors")
    return held


def _damage(file: Path) -> str | None:
    """Why a file of weights can't be read, or None."""
    if not isfile(file):
        return f"{file.name} is missing"
    if file.suffix != ".safetensors":
        return None if file.stat().st_size else f"{file.name} is empty"
    try:
        with safe_open(file, "pt"):
            return None
    except (OSError, SafetensorError) as error:
        return f"{file.name} is damaged or cut short ({one_line(error)})"
