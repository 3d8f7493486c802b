"""The pictures: what is in them, that they are written, and what is said where one can't be drawn."""

from pathlib import Path
from xml.etree import ElementTree

import made_up_runs as made
import numpy as np
import pytest
from PIL import Image

from switchkd_cli.report.pictures import draw, style
from switchkd_cli.report.pictures.attention import Map, Question, attention
from switchkd_cli.report.pictures.cost import cost
from switchkd_cli.report.pictures.curves import curves
from switchkd_cli.report.pictures.knee import Position, Sorted, knees
from switchkd_cli.report.pictures.radar import radar
from switchkd_cli.report.scored import read

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
    ours = [
        run(tmp_path, "switch-kd", "Switch-KD", seed, 2.0 + seed, seconds=300, mib=2048) for seed in (0, 1)
    ]
    return [*ours, *(run(tmp_path, "sft", "SFT", seed) for seed in (0, 1))]


def teacher(not_beaten=None):
    scores = {task: 90.0 for task in SCORES}
    return made.teacher(scores, scores, scores, not_beaten)


class NoModels:
    """Saved models of which nothing can be shown."""

    def position(self, folder):
        return None

    def questions(self, folders):
        return []


def test_each_picture_is_a_png_and_an_svg_with_its_text_and_what_can_t_be_drawn_is_said(runs, tmp_path):
    folder = tmp_path / "deep" / "pictures"
    said = [str(drawn) for drawn in draw.draw(runs, teacher(), NoModels(), folder)]
    assert {p.name for p in folder.iterdir()} == {
        f"{name}.{kind}" for name in ("radar", "curves", "cost") for kind in ("png", "svg")
    }
    assert any("no picture of attention: needs saved models" in line for line in said)
    assert any("no picture of knees" in line for line in said)
    for path in folder.glob("*.png"):
        with Image.open(path) as picture:
            assert picture.width > 1000
    text = " ".join(ElementTree.parse(folder / "radar.svg").getroot().itertext())
    assert "Switch-KD" in text and "Perception" in text and "2 seeds" in text


def test_a_picture_drawn_twice_is_the_same_file(runs, tmp_path):
    for name in ("one", "two"):
        list(draw.draw(runs, teacher(), NoModels(), tmp_path / name))
    assert (tmp_path / "one" / "cost.svg").read_bytes() == (tmp_path / "two" / "cost.svg").read_bytes()


def test_a_row_looks_the_same_whatever_stands_beside_it(runs, tmp_path):
    other = run(tmp_path, "my-own", "Mine")
    alone = {row.name: (row.colour, row.mark) for row in style.rows_of([runs[0]])}
    among = {row.name: (row.colour, row.mark) for row in style.rows_of([other, *runs[2:], runs[0]])}
    assert among["switch-kd"] == alone["switch-kd"]
    assert len(set(among.values())) == 3


def test_more_rows_than_colours_are_still_told_apart(tmp_path):
    rows = style.rows_of([run(tmp_path, f"row{i}", f"Row {i}") for i in range(12)])
    assert len({(row.colour, row.mark) for row in rows}) == 12


def plotted(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_the_radar_shows_means_over_seeds_and_leaves_a_discredited_benchmark_out_of_its_group(runs):
    drawn = radar(style.rows_of(runs), teacher({"mmmu_val": ["blind"]}))
    groups, every = drawn.axes
    assert [label.get_text() for label in groups.get_xticklabels()] == ["Perception", "Cognition", "POPE"]
    assert list(plotted(groups)["Switch-KD"].get_ydata()) == [52.5, 42.5, 72.5, 52.5]
    assert [label.get_text() for label in every.get_xticklabels()] == ["MME", "GQA", "(MMMU)", "POPE"]
    assert list(plotted(every)["teacher"].get_ydata()) == [90.0] * 5


def test_cost_shows_the_paired_gain_at_its_seconds_and_gib(runs):
    left, right = cost(style.rows_of(runs), None).axes
    points = {bar.get_label(): bar.lines[0].get_xydata()[0].tolist() for bar in left.containers}
    assert points == {"Switch-KD": [300.0, 2.5], "SFT": [100.0, 0.0]}
    assert {bar.lines[0].get_xdata()[0] for bar in right.containers} == {2.0, 1.0}
    assert cost(style.rows_of(runs[:2]), None) is None  # nothing to measure a gain by


def test_curves_show_each_term_and_the_teacher_beside_the_cross_entropy(runs):
    drawn = curves(style.rows_of(runs))
    shown = [axes for axes in drawn.axes if axes.get_visible()]
    assert [axes.get_title(loc="left") or axes.get_title() for axes in shown] == ["loss of ce, nats"]
    ends = sorted(round(float(line.get_ydata()[-1]), 3) for line in shown[0].get_lines())
    assert ends == [0.1, 0.2, 0.2]  # the teacher's; both rows'


def test_the_knee_is_drawn_at_the_largest_gap_and_the_bound_where_it_is():
    logits = np.exp(-np.arange(200) / 20.0)
    gap = 1 - np.arange(200) / 199 - (logits - logits[-1]) / (logits[0] - logits[-1])
    knee = int(gap.argmax()) + 1
    path = Sorted("teacher", logits, knee, 16, ("dog", "cat", "bus"))
    (axes,) = knees(Position("Switch-KD", "What is it?", "dog", None, (path,)), "#0072B2").axes
    segment = next(c for c in axes.collections if "knee" in str(c.get_label())).get_segments()[0]
    assert segment[0][0] == segment[1][0] == knee
    assert abs(segment[1][1] - segment[0][1]) == pytest.approx(gap.max())
    assert f"knee at {knee}, bounded to k = 16" in axes.get_title(loc="left") + axes.get_title()


def test_attention_names_every_model_with_the_share_it_spends_on_the_picture():
    picture = Image.new("RGB", (24, 24), "white")
    maps = tuple(Map(np.full((2, 2), share / 4), "dog") for share in (0.2, 0.8))
    drawn = attention([Question(picture, "What is it?", "it", "dog", maps)], ["SFT"], ["#E69F00"])
    titles = [axes.get_title(loc="left") or axes.get_title() for axes in drawn.axes]
    assert titles == ["What is [it]?", "teacher (20%)", "SFT (80%)"]
