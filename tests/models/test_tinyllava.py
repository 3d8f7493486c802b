"""TinyLLaVA checkpoints: both layouts compute what their format says, and what can't be read is told."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoProcessor

from switchkd_cli.engine.batch import IGNORE, Example, collate
from switchkd_cli.engine.build import check_checkpoint, check_pair
from switchkd_cli.engine.compatibility import check_fit, compare
from switchkd_cli.engine.models.llava_parts import design
from switchkd_cli.engine.models.vision_language_model import VisionLanguageModel
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Parts, Recipe
from tests.support import tinyllava_format as theirs

FEATURES = (theirs.SIDE // theirs.PATCH) ** 2 - 1
TOKENS = len(theirs.words()) + 3
SAYS = "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and polite answers to the user's questions. "


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A tower's folder, and one checkpoint in both layouts."""
    folder = tmp_path_factory.mktemp("tinyllava")
    tower = theirs.write_tower(folder / "tower")
    told, held = theirs.config(str(tower)), theirs.state()
    theirs.write_fine_tuned(folder / "fine-tuned", held, told)
    theirs.write_pre_trained(folder / "pre-trained", held, told)
    return folder


@pytest.fixture
def folder(home, tmp_path) -> Path:
    """A fine-tuned checkpoint that a test may change."""
    return Path(shutil.copytree(home / "fine-tuned", tmp_path / "model"))


@pytest.fixture(scope="module", params=["fine-tuned", "pre-trained"])
def model(request, home) -> VisionLanguageModel:
    return blueprint(home / request.param, allow_pickle=request.param == "pre-trained").build().eval()


def blueprint(folder: Path, **options):
    return check_checkpoint(str(folder), "teacher", **options)


def problems(folder: Path, **options) -> tuple[list[str], str]:
    with pytest.raises(UserError) as refused:
        blueprint(folder, **options).build()
    return list(refused.value.problems), refused.value.hint


def edit(folder: Path, **changes) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def pictures(*seeds: int) -> torch.Tensor:
    """[rows, 3, side, side] of noise; zeros for a seed of 0, as TinyLLaVA does for a row without a picture."""
    shape = (3, theirs.SIDE, theirs.SIDE)
    return torch.stack(
        [torch.randn(shape, generator=torch.Generator().manual_seed(s)) if s else torch.zeros(shape) for s in seeds]
    )


def ours(model: VisionLanguageModel, rows: list[list[int]], shown: torch.Tensor) -> list[torch.Tensor]:
    """Logits of each row through our three parts."""
    image, examples = model.model.config.image_token_id, []
    for i, row in enumerate(rows):
        ids = [t for token in row for t in ([image] * FEATURES if token == theirs.IMAGE else [token])]
        given = torch.tensor(ids)
        zeros = torch.zeros_like(given)
        images = ({"pixel_values": shown[i]},) if theirs.IMAGE in row else ()
        examples.append(Example(str(i), given, zeros + IGNORE, zeros, given == image, images))
    batch = collate(examples, pad_token=model.inputs.processor.tokenizer.pad_token_id)
    with torch.no_grad():
        tokens = model.project(model.encode(batch.images))
        found = model.logits(model.hidden_states(batch, tokens, batch.turn >= 0))
    return list(found.split([len(e.input_ids) for e in examples]))


ROWS = {
    "picture": ([[5, 6, theirs.IMAGE, 7, 8, 9, 10]], (1,)),
    "text": ([[5, 6, 7], [9, 8, 7, 6, 5]], (0, 0)),
    "mixed": ([[5, theirs.IMAGE, 7], [11, 12, 13, 14], [theirs.IMAGE, 3, 2, 1, 30]], (1, 0, 2)),
}


@pytest.mark.parametrize("kind", ROWS)
def test_logits_are_those_of_the_format(model, kind):
    rows, seeds = ROWS[kind]
    shown = pictures(*seeds)
    expected = theirs.logits(theirs.state(), rows, shown)
    for found, wanted in zip(ours(model, rows, shown), expected, strict=True):
        assert found.shape == wanted.shape == (len(wanted), theirs.VOCABULARY)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_reference_itself_depends_on_the_quirks():
    """Else equal logits would prove little: the layer and the dropped patch must matter."""
    rows, shown, held = ROWS["picture"][0], pictures(1), theirs.state()
    wanted = theirs.logits(held, rows, shown)[0][-1]
    whole = theirs.connect(held, theirs.see(held, shown))
    table = held["language_model.model.embed_tokens.weight"]
    for kept in (whole[0, :-1], whole[0]):  # another patch dropped, or none
        pieces = [kept if token == theirs.IMAGE else table[token][None] for token in rows[0]]
        other = (theirs.read(held, torch.cat(pieces)) @ table.T)[-1]
        assert (other - wanted).abs().max() > 0.01


def test_transformers_alone_reads_what_is_saved_and_counts_the_same_image_tokens(model, tmp_path):
    model.save(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert not [name for name in saved if "_connector" in name or "_vision_tower" in name]
    alone = AutoModelForImageTextToText.from_pretrained(tmp_path).eval()
    processor = AutoProcessor.from_pretrained(tmp_path)
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (30, 50, 3), np.uint8))
    inputs = processor(images=picture, text="USER: <image>\nWhat? ASSISTANT:", return_tensors="pt")
    image = alone.config.image_token_id
    assert (
        int((inputs["input_ids"] == image).sum())
        == FEATURES
        == model.inputs.usual.text.count("<image>")
        == alone.config.image_seq_length
    )
    with torch.no_grad():
        found = alone(**inputs).logits[0]
    row = [token for token in inputs["input_ids"][0].tolist() if token != image]
    row.insert(len(processor.tokenizer("USER: ")["input_ids"]), theirs.IMAGE)
    wanted = theirs.logits(theirs.state(), [row], prepared(picture))[0]
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def prepared(picture: Image.Image) -> torch.Tensor:
    """SigLIP's processing: squeezed into a square, bicubic, to -1 .. 1."""
    small = picture.resize((theirs.SIDE, theirs.SIDE), Image.Resampling.BICUBIC)
    return torch.tensor(np.asarray(small)).permute(2, 0, 1)[None] / 255 * 2 - 1


def test_the_image_token_is_the_next_id_and_the_padded_head_keeps_its_width(model):
    config, words = model.model.config, model.inputs.processor.tokenizer
    assert words.convert_tokens_to_ids("<image>") == config.image_token_id == TOKENS
    assert (len(words), config.text_config.vocab_size) == (TOKENS + 1, theirs.VOCABULARY)
    assert model.model.lm_head.weight.shape[0] == theirs.VOCABULARY


def test_text_around_the_image_is_cut_into_the_same_tokens_as_piece_by_piece(model):
    words = model.inputs.processor.tokenizer
    before, after = "USER: ", "\nshow a dog now ASSISTANT: a dog<|endoftext|>"
    whole = words(f"{before}<image>{after}")["input_ids"]
    assert whole == [*words(before)["input_ids"], TOKENS, *words(after)["input_ids"]]
    assert words.decode(whole) == f"{before}<image>{after}"


def test_a_conversation_is_written_as_the_models_were_trained(model):
    image, text = {"type": "image"}, [{"type": "text", "text": "Where?"}]
    messages = [
        {"role": "user", "content": [image, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "A dog."},
        {"role": "user", "content": text},
    ]
    told = model.inputs.processor.apply_chat_template(messages, add_generation_prompt=True)
    assert told == f"{SAYS}USER: <image>\nWhat? ASSISTANT: A dog.<|endoftext|>USER: Where? ASSISTANT:"
    messages.append({"role": "assistant", "content": "Here."})
    assert model.inputs.processor.apply_chat_template(messages) == f"{told} Here.<|endoftext|>"


def test_a_head_that_is_not_tied_is_read(home, tmp_path):
    held = theirs.state(tied=False)
    told = theirs.config(str(home / "tower"), tied=False)
    rows, shown = ROWS["mixed"][0], pictures(1, 0, 2)
    for i, write in enumerate((theirs.write_fine_tuned, theirs.write_pre_trained)):
        folder = write(tmp_path / str(i), held, told)
        found = ours(blueprint(folder, allow_pickle=True).build().eval(), rows, shown)
        wanted = theirs.logits(held, rows, shown, tied=False)
        torch.testing.assert_close(torch.cat(found), torch.cat(wanted), rtol=1e-4, atol=1e-4)


def test_a_vocabulary_without_padding_grows_by_a_row_that_changes_no_answer(home, tmp_path):
    held = theirs.state(vocabulary=TOKENS)
    folder = theirs.write_fine_tuned(tmp_path / "m", held, theirs.config(str(home / "tower"), vocabulary=TOKENS))
    rows, shown = ROWS["mixed"][0], pictures(1, 0, 2)
    found = torch.cat(ours(blueprint(folder).build().eval(), rows, shown))
    wanted = torch.cat(theirs.logits(held, rows, shown))
    assert found.shape[1] == TOKENS + 1
    torch.testing.assert_close(found[:, :TOKENS], wanted, rtol=1e-4, atol=1e-4)
    assert (found[:, TOKENS] < wanted.max(1).values).all()


# --- the image processor


def test_an_image_processor_in_the_checkpoint_is_taken_first(home, folder):
    theirs.write_tower(folder / "aside", mean=0.25)
    shutil.copy(folder / "aside" / "preprocessor_config.json", folder)
    assert list(blueprint(folder).inputs.processor.image_processor.image_mean) == [0.25] * 3
    assert list(blueprint(home / "fine-tuned").inputs.processor.image_processor.image_mean) == [0.5] * 3


@pytest.mark.parametrize(
    "named", ["/home/someone/models/siglip-so400m-patch14-384", "google/siglip-so400m-patch14-384"]
)
def test_a_published_tower_that_is_not_here_is_known_and_the_run_is_reported(folder, named):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder, vision_config=vision | {"model_name_or_path": named}, vision_model_name_or_path=named)
    found = blueprint(folder)
    assert found.notes == (
        f"teacher: {folder}: {named} is not here: images are prepared as for the published tower of that name",
    )
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (30, 50, 3), np.uint8))
    pixels = found.inputs.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels, prepared(picture), rtol=0, atol=1e-5)


def test_a_path_that_is_not_here_and_not_known_is_reported_with_what_to_do(folder):
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder, vision_config=vision | {"model_name_or_path": "/home/someone/my-tower"})
    told, hint = problems(folder)
    assert told == [
        (
            f"teacher: {folder}: its image processor is not here: /home/someone/my-tower "
            "(config.json: vision_config.model_name_or_path)"
        )
    ]
    assert hint == "copy the preprocessor_config.json of the vision tower that it was trained with into its folder"


def test_pictures_are_padded_to_squares_where_the_model_was_trained_so(folder):
    edit(folder, image_aspect_ratio="pad")
    picture = Image.fromarray(np.random.default_rng(3).integers(0, 255, (30, 50, 3), np.uint8))
    square = Image.new("RGB", (50, 50), (127, 127, 127))
    square.paste(picture, (0, 10))
    found = blueprint(folder).inputs.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(found, prepared(square), rtol=0, atol=1e-5)


# --- the hub

COMMIT = "0123abcd" * 5


def cached(cache: Path, hub_id: str, files: Path) -> None:
    """Puts a folder's files where a download would have."""
    repository = cache / f"models--{hub_id.replace('/', '--')}"
    shutil.copytree(files, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)


def test_a_hub_id_is_read_from_the_cache_without_a_network(folder, tmp_path, monkeypatch):
    named = "google/siglip-tiny"
    vision = json.loads((folder / "config.json").read_text())["vision_config"]
    edit(folder, vision_config=vision | {"model_name_or_path": named})
    cached(tmp_path / "hub", "ours/tiny-llava", folder)
    cached(tmp_path / "hub", named, theirs.write_tower(tmp_path / "tower"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    found = check_checkpoint("ours/tiny-llava", "teacher")
    assert found.notes == ()
    rows, shown = ROWS["mixed"][0], pictures(1, 0, 2)
    wanted = torch.cat(theirs.logits(theirs.state(), rows, shown))
    torch.testing.assert_close(torch.cat(ours(found.build().eval(), rows, shown)), wanted, rtol=1e-4, atol=1e-4)


# --- weights


def test_pickles_are_read_only_when_allowed(home):
    told, hint = problems(home / "pre-trained")
    assert [line.rpartition(": ")[2] for line in told] == [
        "only pickled weights (pytorch_model.bin), which could run code when read"
    ] * 3
    assert "allow_pickle: true" in hint


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def test_a_pickle_with_code_is_refused_even_then(home, tmp_path):
    folder = Path(shutil.copytree(home / "pre-trained", tmp_path / "m"))
    torch.save({"_connector.0.weight": Bomb(tmp_path / "ran")}, folder / "connector" / "pytorch_model.bin")
    assert problems(folder, allow_pickle=True)[0] == [
        f"teacher: {folder}/connector: pytorch_model.bin holds more than tensors, and was not read: it could run code"
    ]
    assert not (tmp_path / "ran").exists()


def test_a_tensor_that_is_absent_or_of_no_known_part_is_reported(folder):
    file = folder / "model-00002-of-00002.safetensors"
    held = load_file(file)
    held["vision_tower2._vision_tower.weight"] = torch.zeros(2)
    save_file(held, file)
    assert problems(folder)[0] == [
        f"teacher: {folder}: 1 tensors of no known part, such as vision_tower2._vision_tower.weight"
    ]
    del held["vision_tower2._vision_tower.weight"], held["connector._connector.2.bias"]
    save_file(held, file)
    told = problems(folder)[0]
    assert told == [
        f"teacher: {folder}: 1 tensors are not in the weights, such as model.multi_modal_projector.linear_2.bias"
    ]


def test_a_value_that_is_not_finite_is_named_by_its_own_file_in_either_layout(home, folder, tmp_path):
    file = folder / "model-00002-of-00002.safetensors"
    held = load_file(file)
    held["connector._connector.2.bias"][3] = torch.nan
    save_file(held, file)
    told = "_connector.2.bias: 1 of its 32 values are NaN or infinite"
    assert problems(folder)[0] == [f"teacher: {folder}: {file.name}: connector.{told}"]
    other = Path(shutil.copytree(home / "pre-trained", tmp_path / "other"))
    held = torch.load(other / "connector" / "pytorch_model.bin")
    held["_connector.2.bias"][3] = torch.nan
    torch.save(held, other / "connector" / "pytorch_model.bin")
    assert problems(other, allow_pickle=True)[0] == [f"teacher: {other}/connector: pytorch_model.bin: {told}"]


def test_a_pooling_head_that_is_not_finite_is_never_read(folder):
    file = folder / "model-00002-of-00002.safetensors"
    held = load_file(file)
    name = next(name for name in held if ".head." in name)
    held[name] = torch.full_like(held[name], torch.nan)
    save_file(held, file)
    blueprint(folder).build()


def test_what_can_not_be_expressed_is_reported_all_at_once(folder):
    text = json.loads((folder / "config.json").read_text())["text_config"]
    edit(
        folder,
        connector_type="resampler",
        image_aspect_ratio="anyres",
        text_config=text | {"model_type": "phi"},
        vision_model_name_or_path2="facebook/dinov2-large",
    )
    (folder / "adapter_config.json").write_text("{}")
    told, hint = problems(folder)
    assert [line.removeprefix(f"teacher: {folder}: ") for line in told] == [
        "config.json: text_config.model_type is 'phi', not qwen2 or llama",
        "config.json: connector_type is 'resampler', not mlp2x_gelu",
        "config.json: image_aspect_ratio is 'anyres', not square or pad",
        "config.json: a second vision tower, 'facebook/dinov2-large'",
        "holds LoRA adapters, not a whole model: merge them first",
    ]
    assert hint.startswith("supported are TinyLLaVA models")


# --- in a recipe


def test_it_is_the_teacher_of_a_student_and_the_student_itself(home):
    name = str(home / "fine-tuned")
    term = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
    stage = {
        "name": "distill",
        "data": "d",
        "train": ["vision"],
        "lr": 1e-3,
        "batch": 1,
        "steps": 1,
        "objective": [term],
    }
    recipe = Recipe.model_validate(
        {
            "title": "t",
            "student": {"family": "llava", "checkpoint": str(home / "pre-trained"), "allow_pickle": True},
            "teacher": {"family": "llava", "checkpoint": name},
            "data": {"d": {"source": "llava_json"}},
            "stages": [stage],
        }
    )
    pair = check_pair(recipe, with_teacher=True)
    assert pair.vocabulary.shared == TOKENS + 1
    paths = pair.build(0)
    model, (rows, seeds) = paths.teacher, ROWS["mixed"]
    assert torch.equal(
        torch.cat(ours(model, rows, pictures(*seeds))), torch.cat(ours(paths.student, rows, pictures(*seeds)))
    )


def test_a_student_of_parts_is_shown_images_as_a_teacher_that_pads_them(home, folder):
    """Its tower squashes them: named, the teacher's way is taken."""
    edit(folder, image_aspect_ratio="pad")
    teacher = blueprint(folder)
    fields = {"family": "llava", "vision": str(home / "fine-tuned"), "language": {"fresh": {"hidden_size": 32}}}
    fields |= {"tokenizer": str(folder), "feature_select": "default"}
    fields["language"]["fresh"] |= {"intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    fields["language"]["fresh"] |= {"num_key_value_heads": 4}
    with pytest.raises(UserError, match="images are prepared differently"):
        check_fit(compare(design(Parts.model_validate(fields)), teacher))
    alike = design(Parts.model_validate(fields | {"image_processor": str(folder)}))
    assert check_fit(compare(alike, teacher)) == []


def test_eval_scores_it_as_it_is(home, tmp_path):
    pytest.importorskip("lmms_eval")
    from switchkd_cli.engine.evaluation.score_model import evaluate

    asked = {"world": "playground", "benchmarks": ("gqa",), "split": "test", "items": 2, "seed": 0, "batch": 2}
    told = evaluate(home / "pre-trained", folder=tmp_path, allow_pickle=True, **asked)
    assert told["scores"]["gqa"]["items"] == 2
    answers = [json.loads(line)["answer"] for line in (tmp_path / "answers" / "gqa.jsonl").read_text().splitlines()]
    assert any(answers)
