"""The figures: what is in them, that they are written, and what is said where one can't be drawn."""

import io
import json
import re
from base64 import b64decode
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from switchkd_cli.report.figures import draw, style
from switchkd_cli.report.figures.saved_models import (
    AttentionExample,
    AttentionMap,
    KneePosition,
    LogitsCurve,
    attention,
    knees,
)
from switchkd_cli.report.figures.scores import gain_and_cost, radar
from switchkd_cli.report.figures.training_curves import curves, lengths
from switchkd_cli.report.results.finished_run import read
from switchkd_cli.runs.run_folder import RunFolder
from tests.support import made_up_runs as made

SCORES = {"mme": 50.0, "gqa": 40.0, "mmmu_val": 30.0, "pope": 70.0}
STAGES = """\
stages:
- name: distill
  steps: 300
  batch: 32
  objective: [{name: ce, loss: cross_entropy, of: student, to: labels}, {name: align, loss: dbild}]
"""


def run(root, row, title, seed=0, gain=0.0, *, seconds=100.0, mib=1024.0):
    scores = {task: value + gain for task, value in SCORES.items()}
    folder = made.run(root, row, title, scores, seed=seed, seconds=seconds, stages=STAGES)
    folder.metrics.unlink()
    for step in range(1, 6):
        figures = {"loss/ce": 1.0 / step, "teacher_ce": 0.1, "memory_mib": mib, "seconds": seconds * step / 5}
        folder.log({"stage": "distill", "step": step, "steps": 5, **figures})
    return read(folder)


@pytest.fixture
def runs(tmp_path: Path):
    ours = [run(tmp_path, "switch-kd", "Switch-KD", seed, 2.0 + seed, seconds=300, mib=2048) for seed in (0, 1)]
    return [*ours, *(run(tmp_path, "sft", "SFT", seed) for seed in (0, 1))]


def teacher(not_beaten=None):
    scores = {task: 90.0 for task in SCORES}
    return made.teacher(scores, scores, scores, not_beaten)


class NoModels:
    """Saved models of which nothing can be shown."""

    def knee_position(self, folder):
        return None

    def attention_examples(self, folders):
        return []


def test_each_figure_is_a_png_and_an_svg_with_its_text_and_what_can_t_be_drawn_is_said(runs, tmp_path):
    folder = tmp_path / "deep" / "pictures"
    said = [str(drawn) for drawn in draw.draw(runs, teacher(), NoModels, folder)]
    assert {p.name for p in folder.iterdir()} == {
        f"{name}.{kind}" for name in ("radar", "curves", "cost") for kind in ("png", "svg")
    }
    assert any("no figure of attention: needs saved models" in line for line in said)
    assert any("no figure of knees" in line for line in said)
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 1000
    text = " ".join(ElementTree.parse(folder / "radar.svg").getroot().itertext())
    assert "Switch-KD" in text and "Perception" in text and "2 seeds" in text


def test_a_figure_drawn_twice_is_the_same_file(runs, tmp_path):
    for name in ("one", "two"):
        list(draw.draw(runs, teacher(), NoModels, tmp_path / name))
    assert (tmp_path / "one" / "cost.svg").read_bytes() == (tmp_path / "two" / "cost.svg").read_bytes()


def test_a_row_looks_the_same_whatever_stands_beside_it(runs, tmp_path):
    other = run(tmp_path, "my-own", "Mine")
    alone = {row.row: (row.colour, row.mark) for row in style.plotted_rows([runs[0]])}
    among = {row.row: (row.colour, row.mark) for row in style.plotted_rows([other, *runs[2:], runs[0]])}
    assert among["switch-kd"] == alone["switch-kd"]
    assert len(set(among.values())) == 3


def test_more_rows_than_colours_are_still_distinguished(tmp_path):
    rows = style.plotted_rows([run(tmp_path, f"row{i}", f"Row {i}") for i in range(12)])
    assert len({(row.colour, row.mark) for row in rows}) == 12


def plotted(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_radar_shows_means_over_seeds_and_leaves_a_discredited_benchmark_out_of_its_group(runs):
    drawn = radar(style.plotted_rows(runs), teacher({"mmmu_val": ["blind"]}))
    groups, every = drawn.axes
    assert [label.get_text() for label in groups.get_xticklabels()] == ["Perception", "Cognition", "POPE"]
    assert list(plotted(groups)["Switch-KD"].get_ydata()) == [52.5, 42.5, 72.5, 52.5]
    assert [label.get_text() for label in every.get_xticklabels()] == ["MME", "GQA", "(MMMU)", "POPE"]
    assert list(plotted(every)["teacher"].get_ydata()) == [90.0] * 5


def test_cost_shows_the_paired_gain_at_its_seconds_and_gib(runs):
    left, right = gain_and_cost(style.plotted_rows(runs), None).axes
    points = {bar.get_label(): bar.lines[0].get_xydata()[0].tolist() for bar in left.containers}
    assert points == {"Switch-KD": [300.0, 2.5], "SFT": [100.0, 0.0]}
    assert {bar.lines[0].get_xdata()[0] for bar in right.containers} == {2.0, 1.0}
    assert gain_and_cost(style.plotted_rows(runs[:2]), None) is None  # nothing to measure a gain by


def test_the_lengths_of_data_are_drawn_once_a_set(runs, tmp_path):
    assert lengths(style.plotted_rows(runs)) is None  # older runs kept none
    for i, scored in enumerate(runs):
        other = {"short": {"4": 7}} if i == 3 else {}
        kept = {"lengths": {"mine": {"16": 3, "32": 0, "64": 1}, "empty": {}, **other}}
        (scored.path / "run.json").write_text(json.dumps({**scored.info, **kept}))
    drawn = lengths(style.plotted_rows([read(RunFolder(scored.path)) for scored in runs]))
    bars = {axes.get_title(): axes.patches[0].get_data() for axes in drawn.axes}
    assert {title: (of.values.tolist(), of.edges.tolist()) for title, of in bars.items()} == {
        "mine: 4 rows": ([3, 0, 1], [8, 16, 32, 64]),
        "short: 7 rows": ([7], [2, 4]),
    }
    assert len(style.write(drawn, tmp_path, "lengths")) == 2


def test_curves_show_each_term_and_the_teacher_beside_the_cross_entropy(runs):
    drawn = curves(style.plotted_rows(runs))
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in shown] == ["loss of ce"]
    ends = sorted(round(float(line.get_ydata()[-1]), 3) for line in shown[0].get_lines())
    assert ends == [0.1, 0.2, 0.2]  # the teacher's; both rows'


def test_curves_show_the_figures_of_validations_at_their_steps(tmp_path):
    """They are fewer than the steps; an event that has a step is none of them."""
    folder = made.run(tmp_path, "mine", "Mine", SCORES, stages=STAGES)
    folder.metrics.unlink()
    for step in range(1, 101):
        found = {"validation/loss": 100 / step, "validation/exact_match": step / 100} if step % 50 == 0 else {}
        folder.log({"stage": "distill", "step": step, "steps": 200, "loss/ce": float(step % 2), **found})
    folder.log({"event": "warning", "stage": "distill", "step": 100, "steps": 100, "text": "ended early"})
    shown = {a.get_title(): a for a in curves(style.plotted_rows([read(folder)])).axes if a.get_visible()}
    loss, match, ce = (
        dict(zip(*shown[panel].get_lines()[0].get_data(), strict=True))
        for panel in ("validation: loss", "validation: exact match", "loss of ce")
    )
    assert (loss[25], loss[50], match[50]) == (2, 1, 1)
    inside = [value for share, value in ce.items() if 10 <= share <= 40]  # of every step, so a mean over neighbours
    assert min(inside) > 0.3 and max(inside) < 0.7


def test_curves_show_the_k_of_each_term_beside_the_teachers(tmp_path):
    """One term led by both sides, one by the teacher alone."""
    folder = made.run(tmp_path, "mine", "Mine", SCORES, stages=STAGES)
    for step in (1, 2):
        k = {"align/teacher": 9, "align/student": 5, "vsd/teacher": 7}
        figures = {f"k/{led}/mean": value for led, value in k.items()}
        folder.log({"stage": "distill", "step": step, "steps": 2, **figures})
    shown = [axes for axes in curves(style.plotted_rows([read(folder)])).axes if axes.get_visible()]
    ends = {a.get_title(): [float(x.get_ydata()[-1]) for x in a.get_lines()] for a in shown}
    assert {title: found for title, found in ends.items() if "effective k" in title} == {
        "align: effective k of the student": [5.0, 9.0],
        "vsd: effective k of the teacher": [7.0],
    }


def test_rows_whose_teacher_is_another_or_read_otherwise_have_a_dashed_line_each(tmp_path):
    """A mean over teachers, or over bounds of a k, is no teacher's."""
    for row, bounds, k in (("one", "{min_k: 8}", 8), ("other", "{}", 84)):
        term = "{name: align, loss: dbild}"
        stages = STAGES.replace(term, f"{{name: align, loss: dbild, parameters: {bounds}}}")
        folder = made.run(tmp_path, row, row.title(), SCORES, stages=stages)
        folder.metrics.unlink()
        for step in (1, 2):
            figures = {"k/align/teacher/mean": k, "k/align/student/mean": 5, "loss/ce": 1.0, "teacher_ce": 0.5}
            folder.log({"stage": "distill", "step": step, "steps": 2, **figures})
    rows = style.plotted_rows([read(RunFolder(tmp_path / "quick" / row / "seed0")) for row in ("one", "other")])
    shown = {axes.get_title(): axes.get_lines() for axes in curves(rows).axes if axes.get_visible()}
    dashed = [line for line in shown["align: effective k of the student"] if line.get_linestyle() == "--"]
    assert [(line.get_color(), line.get_ydata()[-1]) for line in dashed] == [(rows[0].colour, 8), (rows[1].colour, 84)]
    assert [line.get_ydata()[-1] for line in shown["loss of ce"] if line.get_color() == style.TEACHER] == [0.5]


def test_no_mean_is_drawn_beyond_the_end_of_the_shortest_run(tmp_path):
    for seed, end in ((0, 50), (1, 100)):
        folder = made.run(tmp_path, "mine", "Mine", SCORES, seed=seed, stages=STAGES)
        folder.metrics.unlink()
        for step in range(1, end + 1):
            folder.log({"stage": "distill", "step": step, "steps": 100, "loss/ce": 1.0 + 2 * seed})
    runs = [read(RunFolder(tmp_path / "quick" / "mine" / f"seed{seed}")) for seed in (0, 1)]
    (axes,) = [axes for axes in curves(style.plotted_rows(runs)).axes if axes.get_visible()]
    share, value = axes.get_lines()[0].get_data()
    assert set(np.ma.compressed(value)) == {2.0} and share[~np.ma.getmaskarray(value)].max() == 50


def test_a_panel_without_a_number_is_drawn_empty(tmp_path):
    folder = made.run(tmp_path, "mine", "Mine", SCORES, stages=STAGES)
    folder.metrics.unlink()
    folder.log({"stage": "distill", "step": 1, "steps": 1, "loss/ce": None, "grad_norm": 1.0})
    assert curves(style.plotted_rows([read(folder)])) is not None


def test_the_radar_has_only_scores_of_0_to_100(tmp_path):
    folder = made.run(tmp_path, "mine", "Mine", {**SCORES, "mmstar": 0.43}, stages=STAGES)
    (every,) = radar(style.plotted_rows([read(folder)]), None).axes[-1:]
    assert [label.get_text() for label in every.get_xticklabels()] == ["MME", "GQA", "MMMU", "POPE"]


def test_memory_and_seconds_are_those_of_the_last_stage_whoever_trained_the_first(tmp_path):
    stages = STAGES.replace("stages:", "stages:\n- {name: pretrain, steps: 2, batch: 32}")
    folder = made.run(tmp_path, "mine", "Mine", SCORES, stages=stages)
    folder.metrics.unlink()
    folder.log({"stage": "pretrain", "step": 2, "steps": 2, "seconds": 7.0, "memory_mib": 4096})
    assert (read(folder).seconds, read(folder).gib) == (None, None)
    folder.log({"stage": "distill", "step": 2, "steps": 2, "seconds": 9.0, "memory_mib": 1024})
    assert (read(folder).seconds, read(folder).gib) == (9.0, 1.0)


def test_a_stage_that_ended_early_is_as_long_as_it_was(tmp_path):
    folder = made.run(tmp_path, "mine", "Mine", SCORES, stages=STAGES)
    folder.log({"event": "warning", "about": "early end", "stage": "distill", "step": 60, "steps": 60, "text": "ended"})
    assert read(folder).length == "distill 60 of 300 steps of 32"


def test_the_knee_is_drawn_at_the_largest_gap_and_the_bound_where_it_is():
    logits = np.exp(-np.arange(200) / 20.0)
    gap = 1 - np.arange(200) / 199 - (logits - logits[-1]) / (logits[0] - logits[-1])
    knee = int(gap.argmax()) + 1
    path = LogitsCurve("teacher", logits, None, knee, 16, ("dog", "cat", "bus"))
    (axes,) = knees(KneePosition("Switch-KD", "What is it?", "dog", (path,)), "#0072B2").axes
    segment = next(c for c in axes.collections if "knee" in str(c.get_label())).get_segments()[0]
    assert segment[0][0] == segment[1][0] == knee
    assert abs(segment[1][1] - segment[0][1]) == pytest.approx(gap.max())
    assert f"knee at {knee}, bounded to k = 16" in axes.get_title(loc="left") + axes.get_title()


def test_attention_names_every_model_with_the_share_it_spends_on_the_picture():
    picture = Image.new("RGB", (24, 24), "white")
    maps = tuple(AttentionMap(np.full((2, 2), share / 4), "dog") for share in (0.2, 0.8))
    drawn = attention([AttentionExample(picture, "What is it?", "it", "dog", maps)], [("SFT", "#E69F00")])
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in drawn.axes]
    assert titles == ["What is [it]?", "teacher (20%)", "SFT (80%)"]


def test_a_map_in_an_svg_lets_the_picture_through_and_brings_all_it_shows(tmp_path):
    picture = Image.new("RGB", (24, 24), "white")
    maps = (AttentionMap(np.array([[0.4, 0.1], [0.0, 0.0]]), "dog"),)
    drawn = attention([AttentionExample(picture, "What is it?", "it", "dog", maps)], [])
    _, path = style.write(drawn, tmp_path, "attention")
    links = re.findall(r'href="([^"]{0,22})([^"]*)"', path.read_text())
    assert all(start.startswith(("#", "data:image/png;base64,")) for start, _ in links)
    shown = [Image.open(io.BytesIO(b64decode(data))) for start, data in links if start.startswith("data")]
    panel = shown[-1].convert("RGB")  # upside down: the file turns it round
    looked_at, not_at_all = (panel.getpixel((panel.width // 4, panel.height * at // 4)) for at in (3, 1))
    assert not_at_all == (255, 255, 255)  # the picture below
    assert looked_at[0] - max(looked_at[1:]) > 50  # red
