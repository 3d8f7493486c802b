"""LoRA, DoRA and QLoRA: adapters on the student's language model alone, trained, merged, kept next to the model."""

import importlib.util
import json

import pytest
import torch
from transformers import AutoModelForImageTextToText

from switchkd_cli.engine.build import load as load_model
from switchkd_cli.engine.models.low_bits import PackedLinear
from switchkd_cli.engine.models.low_rank import FOLDER, adapter_sizes, add_adapters, merge, merged
from switchkd_cli.engine.training.checkpointing import write_state
from switchkd_cli.errors import INPUT, MACHINE, UserError
from switchkd_cli.planning.preflight import check_named
from switchkd_cli.recipe.load import load
from switchkd_cli.recipe.schema import Lora
from switchkd_cli.runs import run_folder
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import forked, stock_models, tiny, tiny_run, together
from tests.support.small_recipe import write

missing = [name for name in ("peft", "bitsandbytes") if importlib.util.find_spec(name) is None]
needs_peft = pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")
KINDS = {
    "lora": {"rank": 2},
    "some layers": {"rank": 3, "layers": ["q_proj", "v_proj"]},
    "dora": {"rank": 2, "dora": True},
    "qlora": {"rank": 2, "bits": 4},
    "8 bits, dora, some layers": {"rank": 2, "bits": 8, "dora": True, "layers": ["down_proj"]},
}
every_kind = pytest.mark.parametrize("spec", KINDS.values(), ids=KINDS)


def logits(model, batch):
    with torch.no_grad():
        tokens = model.project(model.encode(batch.images), batch.images)
        return model.logits(model.hidden_states(batch, tokens, batch.predicting("answer")))


def moved(model, seed=0):
    """Give every adapter other weights than those it starts with, under which it changes nothing."""
    torch.manual_seed(seed)
    for parameter in model.used_parameters("language").values():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)


@needs_peft
@every_kind
def test_adapters_start_as_nothing_and_are_merged_to_rounding(spec, tmp_path):
    model, spec = tiny.model(seed=1), Lora(**spec)
    counted, _ = adapter_sizes(model, spec)
    batch = tiny.batch(model, tmp_path)
    before = logits(model, batch)
    add_adapters(model, spec, seed=0)
    start = logits(model, batch)
    if spec.bits is None:
        assert torch.equal(start, before)
    else:
        assert 0 < (start - before).abs().max() < 0.1
    assert sum(p.numel() for p in model.used_parameters("language").values()) == counted
    moved(model)
    with_adapters = logits(model, batch)
    assert (with_adapters - start).abs().max() > 1e-3
    with merged(model):
        inside = logits(model, batch)
    assert torch.equal(logits(model, batch), with_adapters)
    torch.testing.assert_close(inside, with_adapters, rtol=1e-5, atol=1e-6)
    model.save(tmp_path / "saved")
    merge(model)
    assert torch.equal(logits(model, batch), inside)
    assert not any(isinstance(m, PackedLinear) or hasattr(m, "lora_A") for m in model.modules())
    again = load_model(str(tmp_path / "saved")).state_dict()
    assert again.keys() == model.state_dict().keys() == tiny.model(seed=1).state_dict().keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in model.state_dict().items())


@needs_peft
def test_peft_loads_the_adapters_that_are_kept_and_stock_classes_the_merged_model(tmp_path):
    from peft import PeftModel

    model = tiny.model(seed=1)
    model.save(tmp_path / "base")
    assert not (tmp_path / "base" / FOLDER).exists()
    add_adapters(model, Lora(rank=2), seed=0)
    moved(model)
    model.save(tmp_path / "saved")
    batch = tiny.batch(model, tmp_path)
    base = AutoModelForImageTextToText.from_pretrained(tmp_path / "base", dtype="float32")
    theirs = load_model(str(tmp_path / "base")).eval()
    theirs.model = PeftModel.from_pretrained(base, tmp_path / "saved" / FOLDER).base_model.model.eval()
    assert torch.equal(logits(theirs, batch), logits(model, batch))
    stock = AutoModelForImageTextToText.from_pretrained(tmp_path / "saved", dtype="float32")
    merge(model)
    assert all(torch.equal(stock.state_dict()[n], p) for n, p in model.model.state_dict().items())
    add_adapters(model, Lora(rank=3), seed=0)  # of a later stage
    model.save(tmp_path / "later")
    assert json.loads((tmp_path / "later" / FOLDER / "adapter_config.json").read_text())["r"] == 3


@needs_peft
@pytest.mark.parametrize("name", ["internvl", "smolvlm", "gemma4", "qwen3_5"])
def test_only_the_language_model_of_each_family_gets_adapters(name, tmp_path):
    stock_models.save(name, tmp_path / "base", width=32, layers=2)
    model = load_model(str(tmp_path / "base"))
    inside = {n: m for n, m in model.language.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    add_adapters(model, Lora(rank=2), seed=0)
    adapters = {n: p for n, p in model.model.named_parameters() if "lora_" in n}
    own = {id(p) for name in inside for p in model.language.layers.get_submodule(name).lora_A.parameters()}
    own |= {id(p) for name in inside for p in model.language.layers.get_submodule(name).lora_B.parameters()}
    assert len(adapters) == 2 * len(inside) and {id(p) for p in adapters.values()} == own
    moved(model)
    model.save(tmp_path / "saved")
    merge(model)
    again = load_model(str(tmp_path / "saved")).state_dict()
    assert all(torch.equal(again[n], p) for n, p in model.state_dict().items())


@needs_peft
def test_a_gradient_is_that_of_the_explicit_formula():
    """y = W x + s B A x, so that with G = dL/dy summed over rows: dL/dA = s Bᵀ G xᵀ and dL/dB = s G xᵀ Aᵀ, in float64."""
    model = tiny.model(seed=1)
    add_adapters(model, Lora(rank=2, alpha=3), seed=0)
    moved(model)
    layer = model.language.layers[0].mlp.down_proj
    inputs = torch.randn(5, layer.in_features, generator=torch.Generator().manual_seed(0))
    outputs = layer(inputs)
    outputs.square().sum().backward()
    x, w, a, b = (
        t.detach().double()
        for t in (inputs, layer.base_layer.weight, *(p["default"].weight for p in (layer.lora_A, layer.lora_B)))
    )
    y = x @ w.T + 1.5 * x @ a.T @ b.T
    torch.testing.assert_close(outputs.detach().double(), y, rtol=1e-5, atol=1e-6)
    of_y = 2 * y
    torch.testing.assert_close(
        layer.lora_A["default"].weight.grad.double(), 1.5 * b.T @ of_y.T @ x, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(
        layer.lora_B["default"].weight.grad.double(), 1.5 * of_y.T @ x @ a.T, rtol=1e-4, atol=1e-5
    )


@needs_peft
@pytest.mark.parametrize("bits", [None, 4])
def test_a_training_changes_adapters_tower_and_projector_alone_and_resumes_bit_equal(bits, tmp_path):
    lora = {"rank": 2, "dropout": 0.25, "bits": bits}  # what is dropped is part of what resumes
    lines, state, loop = together.trained(tmp_path / "whole", lora=lora)
    before = dict(together.untrained().named_parameters())
    now = dict(loop.trainer.paths.named_parameters())
    assert not any(".language_model." in name and ".lora_" not in name for name in state["weights"])
    frozen = {n: p for n, p in now.items() if n.replace(".base_layer", "") in before and n not in state["weights"]}
    assert frozen and all(torch.equal(p, before[n.replace(".base_layer", "")]) for n, p in frozen.items())
    changed = {n.split(".")[3] for n, p in state["weights"].items() if n in before and not torch.equal(p, before[n])}
    assert changed == {"vision_tower", "multi_modal_projector"}
    assert all(p.any() for n, p in state["weights"].items() if "lora_B" in n)
    write_state(together.trained(tmp_path / "part", lora=lora, until=2)[1], tmp_path)
    rest, resumed, _ = together.trained(tmp_path / "rest", lora=lora, after=tmp_path)
    assert rest[0]["loss"] == lines[-1]["loss"]
    assert all(torch.equal(p, resumed["model"][n]) for n, p in state["model"].items())


@pytest.mark.slow
@needs_peft
def test_a_run_keeps_the_adapters_next_to_the_model(tmp_path):
    lora = {"lora": {"rank": 2, "bits": 4}, "lr": 1.0, "steps": 3, "objective": tiny_run.DISTILL[:1]}  # it diverges
    recipe = tiny_run.write(tmp_path, teacher=False, distill=lora, checkpoints={"every_steps": 1, "best": "loss"})
    program = forked.switchkd("distill", recipe, "--out", tmp_path / "runs", cwd=tmp_path)
    assert program.end() == 0, program.text
    run, folder = load(recipe), RunFolder(tmp_path / "runs" / "tiny" / "switch-kd" / "seed0")
    saved = {place: load_model(str(getattr(folder, place))).state_dict() for place in ("model", "best")}
    assert json.loads((folder.model / FOLDER / "adapter_config.json").read_text())["r"] == 2
    assert (folder.best / FOLDER / "adapter_model.safetensors").is_file()
    trained = load_model(str(run_folder.stage(folder.root, run.stage_key(1)).path)).state_dict()
    assert all(torch.equal(trained[n], p) for n, p in saved["model"].items())
    assert any(not torch.equal(saved["best"][n], p) for n, p in saved["model"].items())


def test_what_does_not_fit_is_said(tmp_path, monkeypatch):
    with pytest.raises(UserError) as told:
        adapter_sizes(tiny.model(), Lora(layers=("q_poj", "lm_head")))
    assert "the student's language model has no such linear layers, got 'q_poj' (did you mean" in str(told.value)
    assert len(told.value.problems) == 2 and "down_proj" in told.value.hint
    captions = ("train: [projector]", "train: [projector], lora: {rank: 2}")
    questions = ("    lr_scale:", "    lora: {dora: true, bits: 4}\n    lr_scale:")
    with pytest.raises(UserError) as told:
        load(write(tmp_path, captions, questions, ("data:\n", "deepspeed: {zero: 3}\ndata:\n")))
    lines = "\n".join(told.value.problems)
    assert "trains adapters of the language model: add language to train, got ['projector']" in lines
    assert "reads whole weights: needs deepspeed.zero: 2 or less, got True and 3" in lines
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name in ("peft", "bitsandbytes") else object())
    with pytest.raises(UserError) as told:
        check_named([load(write(tmp_path, questions))])
    assert (told.value.code, told.value.hint) == (MACHINE, "pip install peft bitsandbytes")
    assert told.value.code != INPUT
