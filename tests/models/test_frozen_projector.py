"""A student that keeps its teacher's projector: what is trained, saved, planned for and exported, and what is refused."""

import importlib.util
import json

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForImageTextToText

from switchkd_cli.engine.build import check_checkpoint, check_model, check_pair
from switchkd_cli.engine.build import load as load_model
from switchkd_cli.engine.cost import flops
from switchkd_cli.engine.cost.model_facts import _published_model
from switchkd_cli.engine.cost.step_memory import FP32, activations
from switchkd_cli.engine.cost.workload import Computation, Models
from switchkd_cli.engine.export.runtimes import as_llava, export
from switchkd_cli.engine.models.llava_parts import LLAVA, design
from switchkd_cli.engine.models.shape import ModelShape
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.checkpointing import write_state
from switchkd_cli.errors import INPUT, UserError
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import BUILT_IN, Parts
from tests.support import stock_models, tiny, tiny_run, together
from tests.support.measured import bytes_left, micro_batch, only

WIDE, EQUAL = 24, 16  # teachers; the student is 16 wide
PATHS = frozenset(tiny.SWITCH_KD)


def spec(teacher, **more) -> Parts:
    return Parts(**{**tiny_run.STUDENT, "frozen_projector": str(teacher), **more})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with teachers, and students that keep their projectors."""
    home = tmp_path_factory.mktemp("frozen")
    for width in (WIDE, EQUAL):
        tiny.model(width, seed=2).save(home / f"{width}")
        torch.manual_seed(1)
        design(spec(home / f"{width}")).build().save(home / f"of{width}")
    return home


def pair(folder, width=WIDE) -> Paths:
    student, teacher = load_model(str(folder / f"of{width}")), load_model(str(folder / f"{width}"))
    return Paths(student, teacher, len(student.inputs.tokenizer))


def logits(model, batch):
    with torch.no_grad():
        tokens = model.project(model.encode(batch.images), batch.images)
        return model.logits(model.hidden_states(batch, tokens, batch.predicting("answer")))


def test_visual_tokens_are_the_teacher_s_of_these_features_mapped(folder, tmp_path):
    """z_S = L_S(M(P_T(V_S(x)))), and the switch reads the same P_T(V_S(x))."""
    paths = pair(folder)
    student, teacher = paths.student, paths.teacher
    batch = tiny.batch(student, tmp_path)
    with torch.no_grad():
        outputs = paths(batch, {"student.tokens", "switch.tokens"}, batch.predicting("answer"))
        projected = teacher.project(student.encode(batch.images), batch.images)
    assert torch.equal(outputs["switch.tokens"], projected)
    assert torch.equal(outputs["student.tokens"], student.core.multi_modal_projector.map(projected))
    assert projected.shape[-1] == WIDE and outputs["student.tokens"].shape[-1] == 16


@pytest.mark.parametrize("train", [("projector",), ("vision", "projector", "language")])
def test_the_map_alone_learns_and_a_training_resumes_bit_equal(train, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(together, "untrained", lambda **_: pair(folder))
    how = {"train": train, "objective": [together.CE, together.ALIGN] + [together.VSD] * ("vision" in train)}
    lines, state, loop = together.trained(tmp_path / "whole", **how)
    student = loop.trainer.paths.student
    before, teacher = pair(folder).student.core.multi_modal_projector, loop.trainer.paths.teacher
    frozen, learnt = student.core.multi_modal_projector.frozen, student.core.multi_modal_projector.map
    assert all(map(torch.equal, frozen.parameters(), teacher.core.multi_modal_projector.parameters()))
    assert not any(map(torch.equal, learnt.parameters(), before.map.parameters()))
    assert not any("frozen" in name for name in loop.trainer.trained)

    write_state(
        together.trained(tmp_path / "part", until=1, **how)[1], (tmp_path / "kept").mkdir() or tmp_path / "kept"
    )
    later, resumed, _ = together.trained(tmp_path / "rest", after=tmp_path / "kept", **how)
    assert [line["loss"] for line in later] == [line["loss"] for line in lines[1:]]
    assert all(torch.equal(resumed["model"][name], value) for name, value in state["model"].items())

    student.save(tmp_path / "saved")
    told = LLAVA.usage(json.loads((tmp_path / "saved" / "config.json").read_text()))
    assert "can't\nload this model" in told and "import switchkd_cli.engine.models.frozen_projector" in told
    again = load_model(str(tmp_path / "saved")).state_dict()
    assert all(torch.equal(again[name], value) for name, value in student.state_dict().items())


def test_a_recipe_builds_it_with_and_without_its_teacher(folder, tmp_path):
    file = tiny_run.write(tmp_path, student=json.loads(spec(folder / f"{WIDE}").model_dump_json()))
    run, plain = load(file), load(tiny_run.write((tmp_path / "b").mkdir() or tmp_path / "b"))
    assert run.inputs["student.frozen_projector"] and run.stage_key(0) != plain.stage_key(0)
    paths = check_pair(run.config, with_teacher=True).build(seed=3)
    alone = check_pair(run.config, with_teacher=False).build(seed=3).student
    wanted = load_model(str(folder / f"{WIDE}")).core.multi_modal_projector.state_dict()
    for student in (paths.student, alone):
        frozen = student.core.multi_modal_projector.frozen.state_dict()
        assert all(torch.equal(frozen[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("train", [{"projector"}, {"vision"}, {"vision", "projector", "language"}])
def test_the_plan_counts_what_a_step_takes(train, folder, tmp_path):
    paths, train = pair(folder), frozenset(train)
    wanted = PATHS if "vision" in train else PATHS - {"switch"}
    student, models = paths.student, Models({of: ModelShape(paths.model(of)) for of in ("student", "teacher")}, 0)
    planned = ModelShape(LLAVA.skeleton(student.model.config))
    for shape in (planned, models.student):
        assert shape.total["projector"] == sum(p.numel() for p in student.core.multi_modal_projector.parameters())
        assert shape.trainable["projector"] == sum(
            p.numel() for p in student.core.multi_modal_projector.map.parameters()
        )
    batch = tiny.batch(student, tmp_path)
    only(paths, train)
    keep = batch.predicting("answer")
    left = bytes_left(lambda: paths(batch, wanted, keep), paths, paths.teacher)
    computed = Computation(models, frozenset(map(BUILT_IN.get, wanted)), train)
    assert activations(micro_batch(batch), computed, FP32).saved == pytest.approx(left, rel=0.05)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        outputs = paths(batch, wanted, keep)
        sum(z.square().sum() for path, z in outputs.items() if path != "teacher").backward()
    assert flops.step(micro_batch(batch), computed) == pytest.approx(counter.get_total_flops(), rel=1e-6)


def test_a_plan_knows_a_published_projector():
    named = {"vision": "google/siglip-so400m-patch14-384", "language": "Qwen/Qwen2.5-0.5B"}
    kept = {"frozen_projector": "Zhang199/TinyLLaVA-Qwen2.5-3B-SigLIP", "feature_layer": -2}
    known = _published_model(Parts(family="llava", **named, **kept), "student")
    assert known.shape.trainable["projector"] == 2048 * 896 + 896
    assert known.shape.total["projector"] == (1152 + 1) * 2048 + (2048 + 1) * 2048 + 2048 * 896 + 896
    assert _published_model(Parts(family="llava", **named, frozen_projector="org/unknown"), "student") is None


# --- export: two linear layers in a row are one


@pytest.mark.parametrize("width", [WIDE, EQUAL])
def test_a_folded_model_has_the_logits_of_the_whole_one(width, folder, tmp_path):
    torch.manual_seed(0)
    model = load_model(str(folder / f"of{width}")).double()
    torch.nn.init.normal_(model.core.multi_modal_projector.map.bias)
    batch = tiny.batch(model, tmp_path)
    wanted = logits(model, batch)
    folded = as_llava(model)
    torch.testing.assert_close(logits(folded, batch), wanted, rtol=1e-12, atol=1e-12)
    assert folded.core.multi_modal_projector.linear_2.weight.shape == (16, width)


def test_one_as_wide_as_the_language_model_is_exported_as_a_stock_llava(folder, tmp_path):
    export(folder / f"of{EQUAL}", "vllm", tmp_path / "out")
    assert check_checkpoint(str(tmp_path / "out"), needs_template=False).config.model_type == "llava"
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype="float32").eval()
    assert type(stock).__name__ == "LlavaForConditionalGeneration"
    model = load_model(str(folder / f"of{EQUAL}"))
    batch = tiny.batch(model, tmp_path, which=tiny.rows(tmp_path)[:1])
    with torch.no_grad():
        told = stock(input_ids=batch.input_ids, pixel_values=tiny.pixels(batch)).logits[batch.predicting("answer")]
    torch.testing.assert_close(told, logits(model, batch))


@pytest.mark.parametrize("to", ["vllm", "mlx"])
def test_one_of_another_width_is_refused_where_only_a_stock_llava_is_read(to, folder, tmp_path):
    with pytest.raises(UserError) as refused:
        export(folder / f"of{WIDE}", to, tmp_path / "out")
    told = "the frozen projector is 24 wide inside, a LLaVA's as wide as its language model, 16"
    assert told in refused.value.problems[0] and "--to gguf or onnx" in refused.value.problems[0]
    assert refused.value.code == INPUT and not (tmp_path / "out").exists()


@pytest.mark.skipif(importlib.util.find_spec("gguf") is None, reason="not installed: gguf")
def test_a_gguf_file_has_the_folded_projector_of_any_width(folder, tmp_path):
    from gguf import GGUFReader

    torch.manual_seed(0)
    words = {"tokenizer": "playground:tokenizer-bpe"}
    model = check_model(spec(folder / f"{WIDE}", **words), "student", needs_template=False).build()
    model.save(tmp_path / "model")
    export(tmp_path / "model", "gguf", tmp_path / "out", square_images=True)
    told = {t.name: torch.from_numpy(np.array(t.data)) for t in GGUFReader(tmp_path / "out" / "mmproj.gguf").tensors}
    features = torch.randn(5, 16)
    inside = torch.nn.functional.gelu(features @ told["mm.0.weight"].T + told["mm.0.bias"])
    with torch.no_grad():
        wanted = model.core.multi_modal_projector(features)
    torch.testing.assert_close(inside @ told["mm.2.weight"].T + told["mm.2.bias"], wanted)


# --- what is refused


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"feature_layer": -1}, "it reads features of width 16 from layer -2, the tower gives 16 from layer -1"),
        ({"vision": {"fresh": tiny.VISION | {"hidden_size": 32}}}, "width 16 from layer -2, the tower gives 32"),
        ({"projector": "ldpnetv2"}, "only LLaVA's mlp2x_gelu can be kept"),
    ],
)
def test_a_projector_for_other_features_is_refused(change, told, folder):
    with pytest.raises(UserError, match=told) as refused:
        check_model(spec(folder / f"{WIDE}", **change), "student", needs_template=False)
    assert refused.value.code == INPUT and "student.frozen_projector: " in refused.value.problems[0]


def test_only_a_whole_llava_has_a_projector_to_keep(folder, tmp_path):
    stock_models.save("internvl", tmp_path / "internvl", width=32, layers=2)
    with pytest.raises(UserError, match="internvl checkpoint, not llava"):
        check_model(spec(tmp_path / "internvl"), "student", needs_template=False)
    with pytest.raises(UserError, match="only LLaVA's mlp2x_gelu can be kept"):
        check_model(spec(folder / f"of{WIDE}"), "student", needs_template=False)
    with pytest.raises(UserError, match="nowhere: no such folder"):
        check_model(spec(tmp_path / "nowhere"), "student", needs_template=False)
