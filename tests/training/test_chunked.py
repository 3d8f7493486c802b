"""The chunked objective: the dense one's values and gradients, and never more logits than a chunk's."""

import weakref
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from switchkd_cli import registry
from switchkd_cli.engine.losses.ops import knee
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.chunked import ChunkedObjective, compare_with_dense
from switchkd_cli.engine.training.diagnostics import Diagnostics
from switchkd_cli.engine.training.objective import LossInputs, Objective
from switchkd_cli.recipe.schema import BUILT_IN, Term
from tests.support import tiny

dense_objective = partial(ChunkedObjective, dense=True)
SPOKEN = [
    name
    for name in registry.LOSSES
    if any(kind == "logits" for _, kind in registry.signature("loss", name).reads)
    and not registry.signature("loss", name).of_spans  # tests/training/test_unlike_tokenizers.py
    and set(registry.signature("loss", name).sides) <= BUILT_IN.keys()  # no path that a recipe has to name
]
SWITCH_KD = [
    Term(name="ce", loss="cross_entropy"),
    Term(name="align", loss="dbild", to="teacher", weight=0.5),
    Term(name="vsd", loss="dbild", of="switch", to="teacher", weight=2.0, on="text"),
]
BESIDE = [Term(loss="token_mse", to="teacher"), Term(loss="hidden_correlation", to="teacher")]


@pytest.fixture(scope="module")
def paths():
    student = tiny.model(seed=1)
    return Paths(
        student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer) - 3
    )  # narrower than the heads


@pytest.fixture(params=["chained", "independent"])
def batch(paths, tmp_path, request):
    return tiny.batch(paths.student, tmp_path, request.param)


def few(monkeypatch, paths, positions):
    """Make chunks of this number of positions."""
    monkeypatch.setattr("switchkd_cli.engine.lm_head.LOGITS", positions * paths.vocabulary)


def computed(how, paths, batch, objective, look=None):
    """Return total, parts and all gradients, in float64: rounding depends on the processor."""
    paths.zero_grad()
    paths.adapt(objective.outputs)
    paths.double()
    way, keep = how(objective), objective.keep(batch)
    inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, objective.counts([batch]))
    total, parts = way(inputs, look)
    total.backward()
    moved = {name: p.grad.clone() for name, p in paths.named_parameters() if p.grad is not None}
    paths.float()
    return total.detach(), {name: value.detach() for name, value in parts.items()}, moved


@pytest.mark.parametrize("positions", [1, 7, 10**6])
@pytest.mark.parametrize(
    "terms",
    [SWITCH_KD, SWITCH_KD[2:], BESIDE, SWITCH_KD + BESIDE]
    + [[Term(loss=loss, **({} if loss == "cross_entropy" else {"to": "teacher"}))] for loss in SPOKEN],
    ids=["switch-kd", "vsd", "beside", "both", *SPOKEN],
)
def test_chunks_have_the_dense_objectives_values_and_gradients(paths, batch, terms, positions, monkeypatch):
    objective = Objective(terms)
    whole = computed(dense_objective, paths, batch, objective)
    few(monkeypatch, paths, positions)
    parted = computed(ChunkedObjective, paths, batch, objective)
    torch.testing.assert_close(parted[0], whole[0], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(parted[1], whole[1], rtol=1e-9, atol=1e-12)
    assert list(parted[1]) == [term.name for term in terms]
    assert parted[2].keys() == whole[2].keys() != set()
    for name in whole[2]:
        torch.testing.assert_close(parted[2][name], whole[2][name], rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.parametrize("loss", SPOKEN)
def test_the_check_of_a_first_step_takes_any_loss_in_half_precision(paths, batch, loss, monkeypatch):
    few(monkeypatch, paths, 7)
    objective = Objective([Term(loss=loss, **({} if loss == "cross_entropy" else {"to": "teacher"})), *BESIDE])
    way, keep = ChunkedObjective(objective), objective.keep(batch)
    paths.adapt(objective.outputs)
    with torch.autocast("cpu", torch.bfloat16):
        outputs, heads = paths(batch, way.outputs, keep), paths.heads()._replace(dtype=torch.bfloat16)
        distances = compare_with_dense(objective, LossInputs(outputs, heads, batch, keep, objective.counts([batch])))
    assert max(distances.values()) <= 1e-12


class Widest(TorchDispatchMode):
    """Record the most positions of any tensor with this number of columns."""

    def __init__(self, columns):
        super().__init__()
        self.columns, self.most = columns, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, list | tuple) else [made]:
            rows = isinstance(tensor, torch.Tensor) and tensor.stride()[-1:] == (1,)  # no head turned over
            if rows and tensor.shape[-1:] == (self.columns,):
                self.most = max(self.most, tensor.numel() // self.columns)
        return made


@pytest.mark.parametrize("positions", [1, 5])
def test_no_more_logits_than_a_chunks_ever_exist(paths, tmp_path, positions, monkeypatch):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    few(monkeypatch, paths, positions)
    with Widest(paths.vocabulary) as seen:
        computed(ChunkedObjective, paths, batch, objective, Diagnostics(SWITCH_KD).add)
    whole = objective.keep(batch).sum()
    assert positions <= seen.most <= 2 * positions < whole  # a loss holds both its sides
    with Widest(paths.vocabulary) as seen:  # and it is seen when there are
        computed(dense_objective, paths, batch, objective)
    assert seen.most >= whole


def test_losses_that_compare_a_rows_positions_are_given_whole_rows(paths, tmp_path, monkeypatch):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective([Term(loss="sinkhorn", to="teacher")])
    few(monkeypatch, paths, 1)
    lengths = objective.keep(batch).sum(1).tolist()
    with Widest(paths.vocabulary) as seen:
        computed(ChunkedObjective, paths, batch, objective)
    assert max(lengths) <= seen.most < sum(lengths)  # padded to the longest row of a chunk


def test_what_is_diagnosed_is_the_same_in_any_chunks(paths, batch, monkeypatch):
    whole, parted = Diagnostics(SWITCH_KD), Diagnostics(SWITCH_KD)
    computed(dense_objective, paths, batch, Objective(SWITCH_KD), whole.add)
    few(monkeypatch, paths, 3)
    computed(ChunkedObjective, paths, batch, Objective(SWITCH_KD), parted.add)
    assert parted.figures() == pytest.approx(whole.figures(), rel=1e-9, abs=1e-12)
    assert {"k/vsd/switch/p95", "agreement/student", "switch_gap"} <= whole.figures().keys()


def test_each_terms_share_has_its_own_gradient(paths, batch, monkeypatch):
    few(monkeypatch, paths, 4)
    objective = Objective([*SWITCH_KD, Term(name="unweighed", loss="forward_kl", to="teacher", weight=0)])
    found = {}
    for how in (dense_objective, ChunkedObjective):
        way, keep = how(objective), objective.keep(batch)
        inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, objective.counts([batch]))
        weights = list(paths.student.model.model.vision_tower.parameters())[:1]
        found[how] = {
            name: torch.autograd.grad(value, weights, retain_graph=True)[0]
            for name, value in way.weighted_terms(inputs)
        }
    assert list(found[ChunkedObjective]) == ["ce", "align", "vsd"]
    torch.testing.assert_close(found[ChunkedObjective], found[dense_objective], rtol=1e-4, atol=1e-7)


def test_mixed_precision_computes_the_logits_that_the_models_own_heads_would(paths, tmp_path):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    keep, counts = objective.keep(batch), objective.counts([batch])
    seen = []
    for way, heads in ((dense_objective(objective), None), (ChunkedObjective(objective), paths.heads(torch.bfloat16))):
        with torch.autocast("cpu", torch.bfloat16):
            outputs = paths(batch, way.outputs, keep)
        logits = {}
        total, _ = way(LossInputs(outputs, heads, batch, keep, counts), lambda z, *_, into=logits: into.update(z))
        paths.zero_grad()
        total.backward()
        seen.append((logits, {n: p.grad.clone() for n, p in paths.named_parameters() if p.grad is not None}))
    (dense, of_dense), (parted, of_parted) = seen
    assert all(parted[path].dtype == torch.bfloat16 for path in parted)
    for path in dense:
        assert torch.equal(parted[path], dense[path])
    for name in of_dense:
        torch.testing.assert_close(of_parted[name], of_dense[name], rtol=2e-2, atol=2e-4, msg=name)


def test_the_rows_that_are_no_number_are_named(paths, tmp_path, monkeypatch):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    few(monkeypatch, paths, 2)
    way, keep = ChunkedObjective(objective), objective.keep(batch)
    outputs = paths(batch, way.outputs, keep)
    rows = keep.nonzero()[:, 0]
    answers = batch.predicting("answer")[keep]
    broken = outputs["student.hidden"].detach().clone()
    broken[(rows == 2) & answers] = float("nan")
    inputs = LossInputs({**outputs, "student.hidden": broken}, paths.heads(), batch, keep, objective.counts([batch]))
    found = way.non_finite_rows(["ce", "align", "vsd"], inputs)
    assert found == {"ce": {batch.ids[2]}, "align": {batch.ids[2]}, "vsd": set()}


def test_going_back_twice_is_refused_and_not_wrong(paths, tmp_path):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    way, keep = ChunkedObjective(objective), objective.keep(batch)
    inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, objective.counts([batch]))
    total, _ = way(inputs)
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        total.backward()


def test_without_a_gradient_nothing_is_taken_back(paths, tmp_path):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    way, keep = ChunkedObjective(objective), objective.keep(batch)
    with torch.no_grad():
        inputs = LossInputs(paths(batch, way.outputs, keep), paths.heads(), batch, keep, objective.counts([batch]))
        total, parts = way(inputs)

    assert not total.requires_grad and set(parts) == {"ce", "align", "vsd"}


def test_chunks_are_of_one_size(paths, tmp_path, monkeypatch):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    keep, seen = objective.keep(batch), []
    count = int(keep.sum())
    few(monkeypatch, paths, count - 1)
    computed(ChunkedObjective, paths, batch, objective, lambda logits, _, part: seen.append(part))
    assert [int(part.sum()) for part in seen] == [-(-count // 2), count // 2]
    assert torch.equal(torch.stack(seen).sum(0), keep.long())


def test_a_chunk_is_gone_before_the_next_one_is_there(paths, tmp_path, monkeypatch):
    batch, objective = tiny.batch(paths.student, tmp_path), Objective(SWITCH_KD)
    few(monkeypatch, paths, 2)
    alive, at_once = [], []

    def look(logits, *_):
        at_once.append(sum(known() is not None for known in alive))
        alive.extend(weakref.ref(each) for each in logits.values())

    computed(ChunkedObjective, paths, batch, objective, look)
    assert len(at_once) > 2 and not any(at_once)


def test_terms_at_all_positions_read_the_logits_themselves_and_the_teachers_lead_once(paths, tmp_path, monkeypatch):
    """A copy for each term and side would take most of a chunk's memory."""
    terms = [term.model_copy(update={"on": "answer"}) for term in SWITCH_KD]
    sought, shown, real = [], [], knee.sort_to_knee

    def seek(logits, *rest):
        sought.append(logits.data_ptr())
        return real(logits, *rest)

    monkeypatch.setattr(knee, "sort_to_knee", seek)
    batch = tiny.batch(paths.student, tmp_path)
    computed(ChunkedObjective, paths, batch, Objective(terms), lambda logits, *_: shown.append(dict(logits)))
    assert sought == [shown[0][path].data_ptr() for path in ("teacher", "student", "switch")]
