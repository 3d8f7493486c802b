"""The switch between towers that cut images differently: the student's features of the whole image, resized for the teacher."""

import numpy as np
import pytest
import torch
from PIL import Image

from switchkd_cli.engine.batch import collate
from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.compatibility import check_fit, compare
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.token_map import TokenMap
from switchkd_cli.errors import UserError
from switchkd_cli.recipe.schema import Term
from tests.models.test_stock_families import saved
from tests.support.family import FamilyTests


def brightness(image):
    """The mean of the pixels at each place of V's grid, in the order of V's features: [F, 1]."""
    pixels = image["pixel_values"]
    if "image_grid_thw" in image:
        return pixels.mean(-1, keepdim=True)
    tiles = pixels.view(-1, *pixels.shape[-3:])
    return torch.cat([tile.mean(0).unfold(0, 8, 8).unfold(1, 8, 8).mean((-1, -2)).flatten() for tile in tiles])[:, None]


PICTURES = [("smolvlm", "qwen3_vl"), ("internvl", "qwen2_5_vl"), ("qwen2_vl", "gemma3"), ("llava_next", "qwen2_vl")]


@pytest.mark.parametrize(("family", "other"), PICTURES[:3])
def test_the_features_of_a_whole_image_stand_where_the_teachers_would(family, other):
    """Images that grow brighter downwards, or to the right, do so in what the teacher's projector is given, too."""
    student, teacher = (
        check_checkpoint(str(saved(name, role))) for name, role in ((family, "student"), (other, "teacher"))
    )
    adapter = FeatureAdapter.between(student, teacher, 0, as_pictures=True)
    adapter.width, adapter.maps = 1, torch.nn.ModuleList([torch.nn.Identity()])
    ramp = Image.fromarray(np.tile(np.linspace(0, 255, 96, dtype=np.uint8)[:, None, None], (1, 96, 3)))
    images = [ramp.resize((64, 96)), ramp.rotate(90).resize((96, 48))]
    ours, theirs = ([prepared.inputs for prepared in model.inputs.prepare(images)] for model in (student, teacher))
    for found, image in zip(adapter([*map(brightness, ours)], ours, theirs), theirs, strict=True):
        wanted = brightness(image)
        assert found.shape == wanted.shape
        assert torch.corrcoef(torch.cat([found, wanted], 1).T)[0, 1] > 0.98


@pytest.mark.parametrize(("family", "other"), PICTURES)
def test_towers_that_cut_images_differently_have_a_switch_through_pictures(family, other, tmp_path):
    """Its logits are the teacher's where the adapter gives V_T's features, and its gradient is in V_S and the maps."""
    student, teacher = (
        check_checkpoint(str(saved(name, role))) for name, role in ((family, "student"), (other, "teacher"))
    )
    terms = [Term(name="vsd", loss="dbild", of="switch", to="teacher")]
    facts = compare(student, teacher, terms)
    assert "impossible" not in {fact.verdict for fact in facts} and "adapter" in {fact.verdict for fact in facts}
    with pytest.raises(UserError, match="family"):
        check_fit(facts)
    check_fit(facts, ["adapter"])
    adapter = FeatureAdapter.between(student, teacher, 0, as_pictures=True)
    ours, theirs = student.build().eval(), teacher.build().eval()
    data = FamilyTests.data(None, ours, tmp_path).with_teacher(theirs.inputs, by_bytes=True)
    batch = collate([data.example(row) for row in range(3)], pad_token=0)
    words = ours.inputs.tokenizer, theirs.inputs.tokenizer
    tokens = TokenMap(*words, tuple(of.eos_token_id for of in words))
    paths = Paths(ours, theirs, len(words[0]), tokens, adapter=adapter).train()
    keep = batch.predicting_in_all("answer")
    paths(batch, {"switch"}, keep)["switch"].square().sum().backward()
    used = ours.used_parameters("vision").values()
    reached = {id(p) for p in paths.parameters() if p.grad is not None}
    assert reached == {id(p) for p in [*used, *adapter.parameters()]}
    with torch.no_grad():
        features = theirs.encode(batch.reading("teacher").images)
        adapter.forward = lambda *_: features
        logits = paths(batch, {"switch", "teacher"}, keep)
    assert torch.equal(logits["switch"], logits["teacher"])


@pytest.mark.parametrize(
    ("family", "other"),
    [("qwen2_vl", "internvl"), ("qwen3_vl", "smolvlm"), ("qwen3_vl", "qwen2_vl"), ("gemma4", "qwen3_vl")],
)
def test_a_teacher_that_reads_tiles_and_levels_that_it_lacks_are_refused(family, other):
    """Also features without a place in the image, as Gemma 4 gives them."""
    student, teacher = (
        check_checkpoint(str(saved(name, role))) for name, role in ((family, "student"), (other, "teacher"))
    )
    with pytest.raises(UserError, match="family"):
        check_fit(compare(student, teacher, [Term(name="vsd", loss="dbild", of="switch", to="teacher")]), ["adapter"])
