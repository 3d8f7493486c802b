"""Diagnostics of a step: on which positions, of which term, within which of the term's own bounds."""

from dataclasses import replace

import pytest
import torch

from switchkd_cli import registry
from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.ops.knee import TopKAtKnee
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.diagnostics import Diagnostics, average
from switchkd_cli.engine.training.objective import Objective
from switchkd_cli.recipe.schema import Term
from tests.support import reference_losses as reference
from tests.support import tiny
from tests.support.registered_losses import effective_k

CE = Term(name="ce", loss="cross_entropy")
WIDE = 2000  # columns: all ids of the rows are below
KNEE_LOSSES = [name for name in registry.LOSSES if registry.signature("loss", name).knees]


@pytest.fixture(scope="module")
def batch(tmp_path_factory):
    """Examples of one turn: images, questions, answers."""
    return tiny.batch(tiny.model(), tmp_path_factory.mktemp("rows"))


@pytest.fixture(scope="module")
def logits(batch):
    """Logits of three paths at every position that a term could read, with knees anywhere in the row."""
    generator = torch.Generator().manual_seed(0)
    count = int(everywhere(batch).sum())

    def rows():
        steep = torch.rand(count, 1, generator=generator) ** 2 * 0.8 + 0.01
        columns = torch.stack([torch.randperm(WIDE, generator=generator) for _ in range(count)])
        return 20 * torch.exp(-steep * columns)

    return {path: rows() for path in ("teacher", "student", "switch")}


def everywhere(batch):
    return batch.predicting("all") | batch.predicting("image")


def term(loss="dbild", of="student", *, name="align", on="answer", **parameters):
    return Term(name=name, loss=loss, of=of, to="teacher", on=on, parameters=parameters)


def asked(logits, batch, *terms):
    return told(logits, batch, everywhere(batch), terms)


def told(logits, batch, keep, terms):
    diagnosis = Diagnostics(terms)
    diagnosis.add(logits, batch, keep)
    return diagnosis.figures()


def leaders(figures):
    return {name.removesuffix("/mean") for name in figures if name.startswith("k/") and name.endswith("/mean")}


def test_who_stands_beside_the_teacher_is_asked_on_supervised_tokens_only(logits, batch):
    """A term on image tokens needs their logits, though no token there is supervised."""
    figures = asked(logits, batch, CE, term("self_correlation", on="image"), term(on="text"))
    answers = batch.predicting("answer")[everywhere(batch)]
    assert 0 < answers.sum() < len(answers) and batch.image.any()
    teacher, targets = logits["teacher"][answers], batch.targets[everywhere(batch)][answers]
    for path in ("student", "switch"):
        mine = logits[path][answers]
        agreed = [int(a) == int(b) for a, b in zip(mine.argmax(-1), teacher.argmax(-1), strict=True)]
        assert figures[f"agreement/{path}"] == pytest.approx(sum(agreed) / len(agreed))
        p, q = teacher.double().softmax(-1), mine.double().softmax(-1)
        name = {"student": "kl/student", "switch": "switch_gap"}[path]
        assert figures[name] == pytest.approx(float((p * (p / q).log()).sum(-1).mean()), rel=1e-4)
    own = cross_entropy(targets, logits["student"][answers]).mean().item()
    assert figures["student_ce"] == pytest.approx(own)


def test_changing_what_is_said_on_image_tokens_changes_none_of_these_figures(logits, batch):
    terms = (CE, term("self_correlation", on="image"))
    other = {path: values.clone() for path, values in logits.items()}
    on_image = batch.image[everywhere(batch)] & ~batch.predicting("answer")[everywhere(batch)]
    other["student"][on_image] = other["teacher"][on_image]
    assert asked(other, batch, *terms) == asked(logits, batch, *terms) != {}


def test_without_a_supervised_token_nobody_stands_beside_the_teacher(logits, batch):
    unlabelled = replace(batch, labels=torch.full_like(batch.labels, -100))
    figures = asked(logits, unlabelled, term(on="text"), term(name="other"))
    assert leaders(figures) == {"k/align/teacher", "k/align/student"}
    assert not {"teacher_ce", "agreement/student", "switch_gap"} & figures.keys()


@pytest.mark.parametrize("loss", KNEE_LOSSES)
def test_every_loss_with_knees_reports_k_by_its_leader(loss, logits, batch):
    figures = asked(logits, batch, CE, term(loss, min_k=20, max_k=60))
    led = {"dbild_teacher_led": {"teacher"}, "dbild_student_led": {"student"}}
    expected = led.get(loss, {"teacher", "student"})
    assert leaders(figures) == {f"k/align/{path}" for path in expected}
    answers = batch.predicting("answer")[everywhere(batch)]
    for path in expected:
        rows = logits[path][answers].double().sort(-1, descending=True).values
        knee = torch.tensor([1 + reference.knee(row) for row in rows.tolist()])
        k = knee.clamp(20, 60)
        assert figures[f"k/align/{path}/mean"] == pytest.approx(k.double().mean().item())
        raised, cut = (knee < 20).double().mean().item(), (knee > 60).double().mean().item()
        assert raised > 0 and cut > 0
        assert figures[f"k/align/{path}/raised"] == pytest.approx(raised)
        assert figures[f"k/align/{path}/cut"] == pytest.approx(cut)
        mass = [row.softmax(-1)[:n].sum().item() for row, n in zip(rows, k.tolist(), strict=True)]
        assert figures[f"mass/align/{path}"] == pytest.approx(sum(mass) / len(mass), rel=1e-4)


def test_a_term_s_leaders_decide_whose_knee_is_diagnosed(logits, batch):
    assert leaders(asked(logits, batch, CE, term(leaders="student"))) == {"k/align/student"}
    assert leaders(asked(logits, batch, CE, term(leaders="both"))) == {"k/align/teacher", "k/align/student"}


@pytest.mark.parametrize("loss", registry.LOSSES)
def test_a_loss_that_declares_knees_takes_their_bounds_and_no_other_does(loss):
    declared = registry.signature("loss", loss)
    assert bool(declared.knees) == (set(registry.BOUNDS) <= declared.keywords.keys())
    assert set(declared.knees) <= {"teacher", "student"}


@pytest.mark.parametrize("loss", KNEE_LOSSES)
def test_who_is_declared_to_lead_leads(loss):
    """A bound on k changes a row's loss only through its leader: the other model's order has no effect."""
    steep, flat = 20 * torch.exp(-2.0 * torch.arange(40.0)), 20 * torch.exp(-0.05 * torch.arange(40.0))
    assert effective_k(steep[None]) == 3 < effective_k(flat[None])
    compute = registry.resolve("loss", loss)
    for side, pair in (("teacher", (flat, steep)), ("student", (steep, flat))):
        free, cut = (compute(*(z[None] for z in pair), max_k=k) for k in (None, 3))
        assert bool((free != cut).item()) == (side in registry.signature("loss", loss).knees)


def test_each_term_has_its_own_bounds_and_positions(logits, batch):
    terms = (CE, term(max_k=10), term(of="switch", name="vsd", max_k=50), term(name="pictures", on="image"))
    figures = asked(logits, batch, *terms)
    assert leaders(figures) == {
        f"k/{led}"
        for led in ("align/teacher", "align/student", "vsd/teacher", "vsd/switch")
        + ("pictures/teacher", "pictures/student")
    }
    assert figures["k/align/teacher/p95"] <= 10 < figures["k/vsd/teacher/p95"] <= 50
    image = batch.image[everywhere(batch)]
    free = effective_k(logits["student"][image]).float()
    assert figures["k/pictures/student/mean"] == pytest.approx(free.mean().item())


def test_what_two_terms_seek_alike_is_sorted_once(logits, batch, monkeypatch):
    searched, search = [], TopKAtKnee.search
    monkeypatch.setattr(TopKAtKnee, "search", lambda *given: searched.append(given[1][0]) or search(*given))
    asked(logits, batch, CE, term(), term(of="switch", name="vsd"))
    first = [values[batch.predicting("answer")[everywhere(batch)]][0] for values in logits.values()]
    assert len(searched) == 3 and all(any(torch.equal(each, of) for each in searched) for of in first)


def test_a_micro_batch_without_the_terms_positions_says_nothing_of_it(logits, batch):
    text_only = replace(batch, image=torch.zeros_like(batch.image))
    keep = everywhere(text_only)
    cut = {path: values[: int(keep.sum())] for path, values in logits.items()}
    figures = told(cut, text_only, keep, (CE, term(name="pictures", on="image")))
    assert not leaders(figures) and "agreement/student" in figures


def test_rows_are_looked_at_block_by_block_with_the_same_figures(logits, batch, monkeypatch):
    whole = asked(logits, batch, CE, term())
    monkeypatch.setattr("switchkd_cli.engine.training.figures.BLOCK", 3 * WIDE)
    assert asked(logits, batch, CE, term()) == pytest.approx(whole)


@pytest.mark.parametrize("on", ["answer", "all"])
def test_processes_are_averaged_by_the_positions_of_each_figure(tmp_path, on):
    """Whatever positions the terms read: as one process would see all examples."""
    student = tiny.model(seed=1)
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.tokenizer))
    terms = [term("forward_kl", on=on), Term(name="ce", loss="cross_entropy"), term(name="vsd", on="all")]
    objective = Objective(terms)
    short = tiny.row("a", None, ("Say a very long thing that has many words in it. " * 3, "hi"))
    long = tiny.row("b", None, ("Say.", "three red apples on the table at the top left and a bus"))

    def seen(*rows):
        batch = tiny.batch(student, tmp_path, which=list(rows))
        found, keep = Diagnostics(terms), objective.keep(batch)
        with torch.no_grad():
            found.add(paths(batch, ("student", "teacher"), keep), batch, keep)
        return found

    every = seen(short, long).figures()
    means = {name for name in every if not name.endswith(("/p5", "/p95"))}  # quantiles are no means
    averaged = average([seen(short).counted(), seen(long).counted()])
    assert {name: averaged[name] for name in means} == pytest.approx({name: every[name] for name in means}, rel=1e-4)
