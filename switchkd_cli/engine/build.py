"""A recipe's names -> objects: the student, the teacher, data, paths."""

from pathlib import Path

from transformers import AutoConfig, AutoProcessor, LlavaForConditionalGeneration, PreTrainedConfig, set_seed

from switchkd_cli import registry
from switchkd_cli.engine.contract import shared_vocabulary
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.models.llava import Llava
from switchkd_cli.engine.models.parts import assemble
from switchkd_cli.engine.paths import Paths
from switchkd_cli.errors import UserError
from switchkd_cli.locate import locate
from switchkd_cli.recipe.schema import Checkpoint, DataSet, Model, Recipe


def load(checkpoint: str, who: str = "checkpoint") -> Llava:
    """A whole LLaVA checkpoint in float32: safetensors only, no remote code.

    Raises UserError for a folder that is empty or holds another family.
    """
    folder = locate(checkpoint)
    check_family(folder, who)
    try:
        model = LlavaForConditionalGeneration.from_pretrained(folder, dtype="float32", use_safetensors=True)
    except OSError as error:
        raise UserError(f"{who}: {checkpoint}: {str(error).splitlines()[0]}") from error
    return Llava(model, AutoProcessor.from_pretrained(folder, backend="pil"))


def check_family(folder: str, who: str) -> PreTrainedConfig:
    """The checkpoint's config, if it is a LLaVA model; no weights are read."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise UserError(f"{who}: {folder}: no readable config: {str(error).splitlines()[0]}") from error
    if config.model_type != "llava":
        raise UserError(
            f"{who}: {folder} is a {config.model_type} checkpoint, not llava",
            hint="name a LlavaForConditionalGeneration folder, for example a run's model/",
        )
    return config


def build_model(spec: Model, seed: int, who: str) -> Llava:
    """The model that `spec` describes; fresh weights are drawn from `seed`."""
    set_seed(seed)
    return load(spec.checkpoint, who) if isinstance(spec, Checkpoint) else assemble(spec)


def build_data(spec: DataSet, model: Llava, cache: Path) -> Conversations:
    """The rows of one named data set, read for `model`."""
    return registry.resolve("source", spec.source)(
        model.processor, model.image_tokens, cache, **spec.parameters
    )


def build_paths(recipe: Recipe, *, with_teacher: bool) -> Paths:
    """Student and (if asked for) teacher, checked against each other."""
    student = build_model(recipe.student, recipe.seed, "student")
    teacher = build_model(recipe.teacher, recipe.seed, "teacher") if with_teacher else None
    tokenizer = student.processor.tokenizer
    vocabulary = len(tokenizer) if teacher is None else shared_vocabulary(student, teacher)
    return Paths(student, teacher, vocabulary)
