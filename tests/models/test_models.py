"""Hugging Face folders and models from parts: SigLIP or CLIP, Qwen2 or Llama, both projectors."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    LlamaConfig,
    LlamaForCausalLM,
    ProcessorMixin,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionModel,
)

from switchkd_cli.engine import weights
from switchkd_cli.engine.build import check_checkpoint, check_model
from switchkd_cli.engine.models.ldpnet import LDPNetV2
from switchkd_cli.engine.models.shape import features_of, image_tokens_of
from switchkd_cli.engine.paths import Paths
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.run import model_names
from switchkd_cli.recipe.schema import Checkpoint, Parts
from tests.support import tiny

SIDE, PATCH = 48, 12
SEEN = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": SIDE,
    "patch_size": PATCH,
}
TEXT = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,
}
WRITTEN = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
TOWERS = {
    "siglip": (SiglipConfig, SiglipModel, SiglipImageProcessorPil(size={"height": SIDE, "width": SIDE})),
    "clip": (
        CLIPConfig,
        CLIPModel,
        CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}),
    ),
}
READERS = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Vision-language towers as they are published (text half and all), and language models."""
    folder = tmp_path_factory.mktemp("parts")
    torch.manual_seed(0)
    for name, (config_class, model_class, processor) in TOWERS.items():
        model = model_class(config_class(vision_config=SEEN, text_config=WRITTEN | {"vocab_size": 40}))
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
    tokenizer = tiny.model().inputs.processor.tokenizer
    for name, (config_class, model_class) in READERS.items():
        padded = len(tokenizer) + (5 if name == "qwen2" else 0)
        model_class(config_class(**TEXT, vocab_size=padded, tie_word_embeddings=name == "qwen2")).save_pretrained(
            folder / name
        )
        tokenizer.save_pretrained(folder / name)
    return folder


def spec(parts, tower, reader, projector="mlp2x_gelu", select=None) -> Parts:
    return Parts(
        family="llava",
        vision=str(parts / tower),
        language=str(parts / reader),
        projector=projector,
        feature_select=select or ("default" if tower == "clip" else "full"),
    )


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(3).integers(0, 255, (60, 80, 3), np.uint8))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("tower", TOWERS)
def test_parts_keep_their_weights(parts, tower, reader):
    torch.manual_seed(1)
    model = check_model(spec(parts, tower, reader), "student").build().eval()
    pixels = torch.randn(2, 3, SIDE, SIDE)
    alone = {"siglip": SiglipVisionModel, "clip": CLIPVisionModel}[tower].from_pretrained(parts / tower).eval()
    language = READERS[reader][1].from_pretrained(parts / reader).eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        wanted = alone(pixels, output_hidden_states=True).hidden_states[-2]
        torch.testing.assert_close(
            model.encode([{"pixel_values": each} for each in pixels]), wanted[:, 1:] if tower == "clip" else wanted
        )
        torch.testing.assert_close(model.model(input_ids=ids).logits, language(ids).logits)


@pytest.mark.parametrize("projector", ["mlp2x_gelu", "ldpnetv2"])
@pytest.mark.parametrize(
    ("tower", "select"), [("siglip", "full"), ("siglip", "default"), ("clip", "default"), ("clip", "full")]
)
@pytest.mark.parametrize("reader", READERS)
def test_a_saved_model_is_read_back_and_computes_the_same_in_parts_and_as_a_whole(
    parts, tmp_path, tower, select, reader, projector
):
    wanted = spec(parts, tower, reader, projector, select)
    if projector == "ldpnetv2" and (tower, select) not in (("siglip", "full"), ("clip", "default")):
        with pytest.raises(UserError, match="ldpnetv2 needs the whole grid of 4 x 4 features, got 1[57]"):
            check_model(wanted, "student")
        return
    torch.manual_seed(1)
    student = check_model(wanted, "student").build().eval()
    student.save(tmp_path / "model")
    again = check_checkpoint(str(tmp_path / "model")).build().eval()
    assert again.model.state_dict().keys() == student.model.state_dict().keys()
    (tmp_path / "rows").mkdir()
    batch = tiny.batch(again, tmp_path / "rows")
    keep = batch.predicting("all")
    counts = (batch.image.sum(1).unique()).tolist()
    assert (
        max(counts)
        == again.inputs.usual.text.count("<image>")
        == features_of(again.model.config) // (4 if projector == "ldpnetv2" else 1)
    )
    whole = again.model(
        input_ids=batch.input_ids, pixel_values=tiny.pixels(batch), attention_mask=batch.attention.long()
    ).logits[keep]
    split = Paths(again, None, whole.shape[1])(batch, {"student"}, keep)["student"]
    torch.testing.assert_close(split, whole, rtol=1e-5, atol=1e-5)
    first = Paths(student, None, whole.shape[1])(batch, {"student"}, keep)["student"]
    torch.testing.assert_close(first, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("tower", "tokens"), [("siglip", 16), ("clip", 16)])
def test_transformers_own_processor_counts_the_models_image_tokens(parts, tmp_path, tower, tokens):
    model = check_model(spec(parts, tower, "llama"), "student").build()
    model.save(tmp_path)
    alone = AutoModelForImageTextToText.from_pretrained(tmp_path)
    inputs = AutoProcessor.from_pretrained(tmp_path)(images=picture(), text="<image>What?", return_tensors="pt")
    assert int((inputs["input_ids"] == alone.config.image_token_id).sum()) == tokens
    assert torch.isfinite(alone(**inputs).logits).all()


def test_the_names_of_published_llava_folders_are_read(parts, tmp_path):
    torch.manual_seed(1)
    model = check_model(spec(parts, "clip", "llama"), "student").build()
    model.save(tmp_path)
    published = {
        "model.language_model.": "language_model.model.",
        "lm_head.": "language_model.lm_head.",
        "model.vision_tower.vision_model.": "vision_tower.vision_model.",  # in transformers before 5.6
        "model.vision_tower.": "vision_tower.vision_model.",
        "model.multi_modal_projector.": "multi_modal_projector.",
    }
    held = {
        next(new + name.removeprefix(mine) for mine, new in published.items() if name.startswith(mine)): tensor
        for name, tensor in model.model.state_dict().items()
    }
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    again = check_checkpoint(str(tmp_path)).build()
    for name, tensor in model.model.state_dict().items():
        torch.testing.assert_close(again.model.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_an_old_folder_whose_processor_does_not_count_is_read_all_the_same(parts, tmp_path):
    model = check_model(spec(parts, "clip", "llama"), "student").build()
    model.save(tmp_path)
    file = tmp_path / "processor_config.json"
    told = json.loads(file.read_text())
    for key in ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"):
        del told[key]
    file.write_text(json.dumps(told))
    assert check_checkpoint(str(tmp_path)).inputs.usual.text.count("<image>") == 16


def test_a_language_model_without_a_row_for_the_image_token_gets_one(parts, tmp_path):
    narrow = LlamaForCausalLM.from_pretrained(parts / "llama")
    rows = narrow.config.vocab_size - 1
    narrow.resize_token_embeddings(rows)
    narrow.save_pretrained(tmp_path)
    wanted = spec(parts, "clip", "llama").model_copy(
        update={"language": str(tmp_path), "tokenizer": str(parts / "llama")}
    )
    model = check_model(wanted, "student").build().eval()
    ids = torch.arange(12)[None]
    with torch.no_grad():
        found, before = model.model(input_ids=ids).logits, narrow.eval()(ids).logits
    assert found.shape[-1] == rows + 1
    torch.testing.assert_close(found[..., :rows], before)
    assert (found[..., rows] <= before.max(-1).values).all()


def test_everything_is_read_once(parts, tmp_path, monkeypatch):
    teacher = Checkpoint(family="llava", checkpoint=str(tmp_path))
    check_model(spec(parts, "siglip", "qwen2"), "teacher").build().save(tmp_path)
    read = Counter()

    def counted(owner, name, label):
        inner = getattr(owner, name)

        def noted(*arguments, **more):
            read[label] += 1
            return inner(*arguments, **more)

        monkeypatch.setattr(owner, name, noted)

    counted(AutoTokenizer, "from_pretrained", "tokenizer")
    counted(ProcessorMixin, "get_processor_dict", "processor")
    counted(AutoImageProcessor, "from_pretrained", "image processor")
    counted(weights, "_damage", "header")
    student = check_model(spec(parts, "siglip", "qwen2"), "student")
    whole = check_model(teacher, "teacher")
    # the processor of a whole folder reads its own tokenizer and image processor
    expected = {"tokenizer": 2, "processor": 1, "image processor": 2, "header": 3}
    assert dict(read) == expected
    student.build(), whole.build()
    assert dict(read) == expected


# --- LDPNetV2


def explicit(module, features: torch.Tensor) -> torch.Tensor:
    """LDPNetV2 from its description, a token at a time: no pooling or convolution of torch's."""
    state = {name: tensor.double() for name, tensor in module.state_dict().items()}
    x = features.double() @ state["linear_1.weight"].T + state["linear_1.bias"]
    x = 0.5 * x * (1 + torch.erf(x / 2**0.5))
    x = x @ state["linear_2.weight"].T + state["linear_2.bias"]
    side = int(x.shape[1] ** 0.5)
    half = side // 2
    pooled = torch.zeros(len(x), half, half, x.shape[2], dtype=torch.float64)
    for row in range(half):
        for column in range(half):
            block = [(2 * row + i) * side + 2 * column + j for i in (0, 1) for j in (0, 1)]
            pooled[:, row, column] = x[:, block].mean(1)
    out = pooled + state["position.bias"]
    for row in range(half):
        for column in range(half):
            for i in (-1, 0, 1):
                for j in (-1, 0, 1):
                    if 0 <= row + i < half and 0 <= column + j < half:
                        weight = state["position.weight"][:, 0, i + 1, j + 1]
                        out[:, row, column] += weight * pooled[:, row + i, column + j]
    return out.flatten(1, 2)


def test_ldpnetv2_is_its_description(parts):
    torch.manual_seed(2)
    model = check_model(spec(parts, "clip", "qwen2", "ldpnetv2"), "student").build()
    features = torch.randn(2, 16, 16)
    found = model.project(features)
    assert found.shape == (2, 4, 16)
    torch.testing.assert_close(
        found.double(), explicit(model.model.model.multi_modal_projector, features), rtol=1e-5, atol=1e-6
    )


def test_ldpnetv2_makes_144_tokens_of_clips_576_features(parts):
    config = check_model(spec(parts, "clip", "qwen2", "ldpnetv2"), "student").config
    config.vision_config.image_size, config.vision_config.patch_size = 336, 14
    assert features_of(config) == 576
    assert image_tokens_of(config) == 144
    assert LDPNetV2(config)(torch.randn(1, 576, 16)).shape == (1, 144, 16)


def test_every_ldpnetv2_weight_is_trained(parts):
    model = check_model(spec(parts, "clip", "qwen2", "ldpnetv2"), "student").build()
    assert {name.split(".")[0] for name in model.used_parameters("projector")} == {"linear_1", "linear_2", "position"}


def test_a_saved_ldpnetv2_is_not_taken_for_another_model_by_transformers(parts, tmp_path):
    check_model(spec(parts, "clip", "qwen2", "ldpnetv2"), "student").build().save(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["model_type"] == "llava_ldpnetv2"  # which transformers, without this package, does not know
    assert type(AutoConfig.from_pretrained(tmp_path)).__module__.startswith("switchkd_cli")


def test_ldpnetv2_needs_a_grid_that_it_can_halve():
    student = Parts(
        family="llava",
        vision={"fresh": tiny.VISION | {"image_size": 36}},
        language={"fresh": TEXT},
        tokenizer="playground:tokenizer",
        projector="ldpnetv2",
    )
    with pytest.raises(UserError, match="a grid with a side divisible by 2, got 3"):
        check_model(student, "student")


# --- how images are prepared


def test_images_may_be_prepared_as_another_tower_s_or_a_whole_model_s_are(parts, tmp_path):
    """The tower is SigLIP's, which squashes; CLIP's cuts the middle out."""
    check_model(spec(parts, "clip", "qwen2"), "student").build().save(tmp_path / "whole")
    usual, *others = (
        check_model(spec(parts, "siglip", "qwen2").model_copy(update={"image_processor": named}), "student")
        for named in (None, str(parts / "clip"), str(tmp_path / "whole"))
    )
    assert type(usual.inputs.processor.image_processor).__name__.startswith("Siglip")
    for other in others:
        assert type(other.inputs.processor.image_processor).__name__.startswith("CLIP")
        assert other.config.vision_config.model_type == "siglip_vision_model"


def test_what_has_no_image_processor_can_not_say_how_images_are_prepared(parts):
    told = f"student.image_processor: {parts}/qwen2: no preprocessor_config.json there, and no complete model"
    with pytest.raises(UserError, match=told):
        named = {"image_processor": str(parts / "qwen2")}
        check_model(spec(parts, "siglip", "qwen2").model_copy(update=named), "student")


def test_what_prepares_images_is_part_of_a_run_s_key_where_it_is_named(parts):
    plain = spec(parts, "siglip", "qwen2")
    assert "image_processor" not in plain.model_dump()
    named = plain.model_copy(update={"image_processor": str(parts / "clip")})
    added = dict(model_names("student", named)).items() - dict(model_names("student", plain)).items()
    assert added == {("student.image_processor", str(parts / "clip"))}


# --- pickles


def test_parts_in_pickles_are_read_when_allowed(parts, tmp_path):
    for name in ("clip", "qwen2"):
        (tmp_path / name).mkdir()
        for file in (parts / name).iterdir():
            if file.suffix == ".json" or file.suffix == ".jinja":
                (tmp_path / name / file.name).write_bytes(file.read_bytes())
        torch.save(load_file(parts / name / "model.safetensors"), tmp_path / name / "pytorch_model.bin")
    wanted = spec(tmp_path, "clip", "qwen2")
    with pytest.raises(UserError) as refused:
        check_model(wanted, "student")
    assert len(refused.value.problems) == 2 and "allow_pickle" in refused.value.hint
    torch.manual_seed(0)
    found = check_model(wanted.model_copy(update={"allow_pickle": True}), "student").build()
    torch.manual_seed(0)
    plain = check_model(spec(parts, "clip", "qwen2"), "student").build()
    for name, tensor in plain.model.state_dict().items():
        torch.testing.assert_close(found.model.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def test_a_checkpoint_says_in_the_recipe_that_it_may_be_a_pickle(parts, tmp_path):
    check_model(spec(parts, "siglip", "qwen2"), "student").build().save(tmp_path)
    torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="only pickled weights"):
        check_model(Checkpoint(family="llava", checkpoint=str(tmp_path)), "teacher")
    check_model(Checkpoint(family="llava", checkpoint=str(tmp_path), allow_pickle=True), "teacher").build()
