"""A recipe's names -> objects: the student, the teacher, data, paths."""

from pathlib import Path

from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, set_seed

from switchkd_cli import registry
from switchkd_cli.engine.contract import check_alone, shared_vocabulary
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.models.llava import Blueprint, Llava
from switchkd_cli.engine.models.parts import TOWERS, assemble, check_parts, design
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.stored import check_weights, explained, fetch, load_weights
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Checkpoint, DataSet, Model, Recipe


def load(checkpoint: str, who: str = "checkpoint") -> Llava:
    """A whole LLaVA checkpoint in float32: safetensors only, no remote code.

    Raises UserError where `check_checkpoint` does, and for weights that are not the config's.
    """
    processor = check_checkpoint(checkpoint, who).processor
    return Llava(load_weights(LlavaForConditionalGeneration, checkpoint, who), processor)


def check_checkpoint(checkpoint: str, who: str = "checkpoint") -> Blueprint:
    """The checkpoint's config and processor; of its weights only the files' headers are read.

    Raises UserError for a folder that is empty, broken or of another family.
    """
    folder = fetch(checkpoint, who)
    with explained(f"{who}: {checkpoint}: no readable config"):
        config = AutoConfig.from_pretrained(folder)
    if config.model_type != "llava" or config.vision_config.model_type not in TOWERS:
        tower = f" with a {config.vision_config.model_type}" if config.model_type == "llava" else ""
        raise UserError(
            f"{who}: {checkpoint} is a {config.model_type} checkpoint{tower}, not llava with {' or '.join(TOWERS)}",
            hint="name a LlavaForConditionalGeneration folder, for example a run's model/",
        )
    with explained(f"{who}: {checkpoint}: no readable processor"):
        blueprint = Blueprint(config, AutoProcessor.from_pretrained(folder, backend="pil"))
    check_alone(blueprint, who)
    check_weights(checkpoint, who)
    return blueprint


def check_model(spec: Model, who: str) -> Blueprint:
    """All of a recipe's model but its weights, which are known to be there."""
    if isinstance(spec, Checkpoint):
        return check_checkpoint(spec.checkpoint, who)
    blueprint = design(spec)
    check_alone(blueprint, who)
    check_parts(spec)
    return blueprint


def build_model(spec: Model, seed: int, who: str) -> Llava:
    """The model that `spec` describes; fresh weights are drawn from `seed`."""
    set_seed(seed)
    return load(spec.checkpoint, who) if isinstance(spec, Checkpoint) else assemble(spec)


def build_data(spec: DataSet, model: Llava, cache: Path) -> Conversations:
    """The rows of one named data set as examples for `model`, looked at before they are trained on.

    Raises UserError for missing or broken files, and where more rows can't be used than the data set allows.
    """
    rows = registry.resolve("source", spec.source)(cache, **spec.parameters)
    limits = {"max_length": spec.max_length, "max_faults": spec.max_faults}
    data = Conversations(rows, model.processor, model.image_tokens, template=spec.template, **limits)
    data.inspect()
    return data


def build_paths(recipe: Recipe, *, with_teacher: bool) -> Paths:
    """Student and (if asked for) teacher, checked against each other before any weight is read."""
    ours = check_model(recipe.student, "student")
    vocabulary = len(ours.processor.tokenizer)
    if recipe.teacher is not None and with_teacher:
        vocabulary = shared_vocabulary(ours, check_model(recipe.teacher, "teacher"))
    elif recipe.teacher is not None and recipe.evaluation is not None:
        check_model(recipe.teacher, "teacher")  # it is scored when the training is over
    student = build_model(recipe.student, recipe.seed, "student")
    teacher = build_model(recipe.teacher, recipe.seed, "teacher") if with_teacher else None
    return Paths(student, teacher, vocabulary)
