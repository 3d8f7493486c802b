"""What is stored under a checkpoint's name: found or fetched, and read so that every failure is a UserError."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TypeVar

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.locate import locate

FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]  # no pickles and no code
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
SAID = 200  # characters of a library's message that are passed on

AnyModel = TypeVar("AnyModel", bound=PreTrainedModel)


def fetch(name: str, who: str) -> Path:
    """The folder that holds the checkpoint; a hub id is downloaded, or found in the cache without a network.

    Raises UserError where there is no such checkpoint, and with code MACHINE where the hub can't be reached.
    """
    where = locate(name)
    if Path(where).is_dir():
        return Path(where)
    try:
        return _snapshot(where)
    except (RepositoryNotFoundError, HFValidationError):
        hint = "a gated model needs a login; a model of yours is named by its folder"
        raise UserError(f"{who}: {name}: no such folder here, no such model on the hub", hint=hint) from None
    except OSError as error:
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else _line(error)
        raise UserError(
            f"{who}: {name}: not on this machine, and could not be fetched from the hub ({why})",
            hint="name a checkpoint folder, or fetch it where there is a network and copy the cache",
            code=MACHINE,
        ) from error


@contextmanager
def explained(problem: str) -> Iterator[None]:
    """Turns whatever the libraries raise over a user's files and values into a UserError of one line."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # they raise OSError, ValueError, their own, and plain Exception
        raise UserError(f"{problem}: {_line(error)}") from error


def check_weights(name: str, who: str) -> None:
    """Raises UserError unless the checkpoint's weights are whole safetensors files; reads their headers only."""
    folder = fetch(name, who)
    problem = next(filter(None, map(_damage, _weight_files(folder, name, who))), None)
    if problem:
        raise UserError(f"{who}: {name}: {problem}", hint="copy or fetch the checkpoint again")


def load_weights(
    model_class: type[AnyModel], name: str, who: str, dtype: str = "float32", **options: object
) -> AnyModel:
    """The model, from safetensors only.

    Raises UserError where tensors are absent or of another shape: they would stay random, silently.
    """
    check_weights(name, who)
    with explained(f"{who}: {name}: no readable weights"):
        model, told = model_class.from_pretrained(
            fetch(name, who),
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # not ignored: told below, in our words
            **options,
        )
    absent, misshapen = sorted(told["missing_keys"]), sorted(told["mismatched_keys"])
    problems = []
    if absent:
        problems.append(f"{who}: {name}: {len(absent)} tensors are not in the weights, such as {absent[0]}")
    if misshapen:
        tensor, theirs, wanted = misshapen[0]
        shapes = f"{list(theirs)}, config.json says {list(wanted)}"
        problems.append(f"{who}: {name}: {len(misshapen)} tensors of another shape: {tensor} is {shapes}")
    if problems:
        raise UserError(problems, hint="the weights and config.json are not of one model")
    return model


@cache
def _snapshot(hub_id: str) -> Path:
    return Path(snapshot_download(hub_id, allow_patterns=FILES))


def _weight_files(folder: Path, name: str, who: str) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        with explained(f"{who}: {name}: no readable {INDEX}"):
            shards = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values()
        return [folder / shard for shard in sorted(set(shards))]
    pickled = sorted(file.name for pattern in PICKLED for file in folder.glob(pattern))
    if pickled:
        raise UserError(
            f"{who}: {name}: only pickled weights ({pickled[0]}), which could run code when read",
            hint=f"save the model as {WEIGHTS}: model.save_pretrained(folder) in transformers does",
        )
    raise UserError(
        f"{who}: {name}: no weights ({WEIGHTS}) there", hint="name a folder that a whole model was saved to"
    )


def _damage(file: Path) -> str | None:
    """Why a safetensors file can't be read, or None."""
    try:
        with safe_open(file, "pt"):
            return None
    except FileNotFoundError:
        return f"{file.name} is missing"
    except (OSError, SafetensorError) as error:
        return f"{file.name} is damaged or cut short ({_line(error)})"


def _line(error: BaseException) -> str:
    """What an error says, on one line."""
    return " ".join(str(error).split())[:SAID] or type(error).__name__
