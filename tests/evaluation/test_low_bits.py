"""`switchkd eval --bits`: linear layers of V and L rounded in groups, everything else as it was, and the size of that."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("lmms_eval")

import torch
from torch import nn

from switchkd_cli.engine.build import load
from switchkd_cli.engine.evaluation.score_model import evaluate
from switchkd_cli.engine.models.low_bits import GROUP, quantise
from switchkd_cli.errors import INPUT, MACHINE, UserError
from switchkd_cli.planning.preflight import check_answering
from tests.support.tiny_llava import save_tiny_llava

has_torchao = importlib.util.find_spec("torchao") is not None
needs_torchao = pytest.mark.skipif(not has_torchao, reason="torchao is not installed (pip install torchao)")
WIDTHS = {48: 16, 64: 32, 96: 32, 128: 32}
"""Of the model's layers: the groups that fit into them."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llava(tmp_path_factory.mktemp("model"))


def linear(model) -> dict[str, nn.Linear]:
    """The layers that are rounded, by name: all of the tower and of the language model below its head."""
    named = model.model.named_modules()
    return {n: m for n, m in named if isinstance(m, nn.Linear) and ("vision_tower" in n or "language_model" in n)}


@needs_torchao
@pytest.mark.parametrize("bits", [8, 4])
def test_each_weight_moves_by_half_a_step_of_its_group_at_most(checkpoint: Path, bits: int) -> None:
    whole, rounded = (load(str(checkpoint)) for _ in range(2))
    quantise(rounded, bits, torch.float32)
    before, after = linear(whole), linear(rounded)
    assert before.keys() == after.keys() and {layer.in_features for layer in after.values()} == WIDTHS.keys()
    for name, layer in before.items():
        group = WIDTHS[layer.in_features]
        weights = layer.weight.detach().unflatten(1, (-1, group))
        changed = after[name].weight.dequantize().float().unflatten(1, (-1, group))
        step = 2 * weights.abs().amax(-1, keepdim=True) / (2**bits - 1)
        of_scale = weights.abs() * 2**-10  # which has ten places
        cut = (weights > 0) * step / 2  # there is one value less above 0 than below
        assert ((weights - changed).abs() <= 0.501 * step + of_scale + cut).all()
        assert all(len(of.unique()) <= 2**bits for of in changed.flatten(0, 1))
    others = [n for n, _ in whole.model.named_parameters() if n.rpartition(".")[0] not in before]
    own = dict(rounded.model.named_parameters())
    assert any("lm_head" in n for n in others) and any("projector" in n for n in others)
    assert all(torch.equal(p, own[n]) for n, p in whole.model.named_parameters() if n in others)


@needs_torchao
@pytest.mark.parametrize(("bits", "stored"), [(8, torch.float32), (4, torch.bfloat16)])
def test_the_bytes_saved_are_those_of_packed_bits_and_a_scale_for_each_group(
    checkpoint: Path, bits: int, stored: torch.dtype
) -> None:
    model = load(str(checkpoint))
    packed = full = 0
    for layer in linear(model).values():
        full += layer.weight.numel() * stored.itemsize
        packed += layer.out_features * layer.in_features * bits // 8
        packed += layer.out_features * (layer.in_features // WIDTHS[layer.in_features]) * 2
    assert GROUP == 32 and quantise(model, bits, stored) == full - packed


@needs_torchao
@pytest.mark.slow
def test_an_evaluation_says_its_bits_and_sizes(checkpoint: Path, sets: Path, tmp_path: Path) -> None:
    asked = {"world": "playground", "benchmarks": ("gqa", "pope"), "split": "test", "items": 8, "seed": 0}
    found = {
        bits: evaluate(checkpoint, folder=tmp_path / str(bits), sets=sets, bits=bits, **asked) for bits in (None, 4)
    }
    assert found[None]["engine"] == found[4]["engine"] == "transformers" and "bits" not in found[None]
    assert found[4]["full_bytes"] == (checkpoint / "model.safetensors").stat().st_size
    assert found[4]["bits"] == 4 and 0.2 < found[4]["bytes"] / found[4]["full_bytes"] < 0.9
    answers = [(tmp_path / str(bits) / "answers" / "gqa.jsonl").read_text() for bits in found]
    assert answers[0] != answers[1]


@pytest.mark.skipif(has_torchao, reason="torchao is installed")
def test_without_torchao_the_machine_lacks_it() -> None:
    with pytest.raises(UserError, match="torchao is not installed: --bits 4 needs it") as refused:
        check_answering("transformers", 4)
    assert (refused.value.code, refused.value.hint) == (MACHINE, "pip install torchao")


def test_other_numbers_of_bits_are_refused() -> None:
    with pytest.raises(UserError, match="--bits: must be 8 or 4, got 3") as refused:
        check_answering("transformers", 3)
    assert refused.value.code == INPUT
