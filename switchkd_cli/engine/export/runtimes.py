"""Write a trained model as another runtime reads it; what the runtime can't represent is said before anything is written."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from transformers import LlavaConfig, LlavaForConditionalGeneration

from switchkd_cli import registry
from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.export.model_card import NAME
from switchkd_cli.engine.models.blueprint import Blueprint
from switchkd_cli.engine.models.frozen_projector import LlavaFrozenConfig
from switchkd_cli.engine.models.llava import LlavaBlueprint
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.files.atomic import atomic_folder

FROZEN = LlavaFrozenConfig.model_type
Reasons = Callable[[Blueprint], Iterable[str]]


@dataclass(frozen=True)
class Runtime:
    """A runtime that models are written for; a line of the registry names each.

    `refuses`: yields why it can't represent a model, each with the recipe's field that would change it. `stretches`: the same
    for images that are not square. `notes`: yields what a user should know. `write`: fills a folder, in 4 or 8 bits (`low`:
    those that it can) or as the model is. `usage`: how to load the folder. `packages`: what `write` imports, with the
    command that installs it; `quantizers`: the programs that it runs for low bits, likewise.
    """

    refuses: Reasons
    write: Callable[[Blueprint, Path, int | None], None]
    usage: str
    stretches: Reasons = lambda model: ()
    notes: Reasons = lambda model: ()
    low: Mapping[int, str] = field(default_factory=dict)
    packages: Mapping[str, str] = field(default_factory=dict)
    quantizers: Mapping[str, str] = field(default_factory=dict)


def export(model: str | Path, to: str, out: Path, bits: int | None = None, *, square_images: bool = False) -> list[str]:
    """Write a saved model (a folder, a hub id, playground:NAME) into the folder `out` for the runtime `to`. Returns notes.

    `square_images`: the runtime will be given square images only. Raises UserError where the runtime can't represent the
    model or `out` is in use, and with code MACHINE where a package or a program is missing: then nothing was written.
    """
    runtime: Runtime = registry.resolve("export", to)
    blueprint = check_checkpoint(str(model), "model")
    problems = [*runtime.refuses(blueprint)]
    if not square_images:
        square = "or make images square first and add --square-images"
        problems += [f"{why}; {square}" for why in runtime.stretches(blueprint)]
    if bits and bits not in runtime.low:
        can = f"must be {' or '.join(map(str, runtime.low))}" if runtime.low else "it lowers the precision as it loads"
        problems.append(f"--bits: {can}, got {bits}")
    if out.exists() and any(out.iterdir()):
        problems.append(f"--out: {out} is in use")
    if problems:
        hint = "docs/deploy.md says which settings of a recipe every runtime takes"
        raise UserError([f"--to {to}: {problem}" for problem in problems], hint=hint)
    missing = {name: how for name, how in runtime.packages.items() if importlib.util.find_spec(name) is None}
    if bits:
        missing |= {name: how for name, how in runtime.quantizers.items() if shutil.which(name) is None}
    if missing:
        absent = [f"--to {to}: {name} is not installed" for name in missing]
        raise UserError(absent, hint=" && ".join(dict.fromkeys(missing.values())), code=MACHINE)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(out) as folder:
        runtime.write(blueprint, folder, bits)
        card = Path(model, NAME)
        before = card.read_text(encoding="utf-8") + "\n" if card.is_file() else ""
        if bits and before:
            measured: Any = ModelCard(before)
            measured.data.eval_results = None  # they are of the model in full
            note = f"Measured before the weights were rounded to {bits} bits; these files were not scored."
            before = str(measured).replace("## Scores\n", f"## Scores\n\n**{note}**\n", 1)
        (folder / NAME).write_text(f"{before}## Use\n\n```\n{runtime.usage}\n```\n", encoding="utf-8")
    return [*blueprint.notes, *runtime.notes(blueprint)]


def unlike_llava(model: Blueprint, *others: str) -> Iterator[str]:
    """Yield why a model isn't a LLaVA as transformers has it; `others`: further model types with LLaVA's shape."""
    kind = model.config.model_type
    if not isinstance(model, LlavaBlueprint):
        yield f"a {model.kind} model, and only LLaVA's shape is written (student.family=llava)"
    elif kind == FROZEN and kind not in others:
        widths = model.config.frozen_width, model.config.text_config.hidden_size
        if widths[0] != widths[1]:
            told = "the frozen projector is {} wide inside, a LLaVA's as wide as its language model, {}".format(*widths)
            yield f"{told} (student.frozen_projector=null, or --to gguf or onnx)"
    elif kind not in ("llava", *others):
        yield "the projector is LDPNetV2, which it lacks (student.projector=mlp2x_gelu)"


def as_llava(model: VisionLanguageModel) -> VisionLanguageModel:
    """Return a model with a frozen projector as transformers' LLaVA, of the same modules; any other as it is."""
    own = model.model
    if own.config.model_type != FROZEN:
        return model
    fields = {name: value for name, value in own.config.to_dict().items() if name not in ("model_type", "frozen_width")}
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(LlavaConfig(**fields))
    llava.model, llava.lm_head, llava.generation_config = own.model, own.lm_head, own.generation_config
    llava.model.multi_modal_projector = own.model.multi_modal_projector.fold()
    return VisionLanguageModel(llava, model.inputs)
