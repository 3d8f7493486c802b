"""A report as LaTeX: characters, columns, and where there is a pdflatex, what it makes of them."""

import shutil
import subprocess

import pytest

from switchkd_cli.report.document import Document, Interval, Line, Number, Points, Probability, Table
from switchkd_cli.report.formats.markup import to_latex

PACKAGES = "array,booktabs,graphicx"  # as docs/compare.md and the head of the file say
LATIN = r"[50% & {more} of_x #1 ~ ^ $\tau$ <b> a|b --seeds -2.8 ± 1 × 2² · é ü ß ñ ł Ž λ ≥ → – “so” … 1/2"
CHINESE = "老师 and 学生"


def report(*titles: str, note: str = "note") -> Document:
    """A line for each title, one of the paper's after them, a second table of words."""
    cells = (Number(-1.25, difference=True), Interval(-3.0, 2.5), Probability(0.0001), None)
    lines = [Line(title, cells) for title in titles]
    lines.append(Line("Switch-KD", cells, "paper"))
    scores = Table(("points", "GQA", "95 % items", "p", titles[0]), tuple(lines), titles[0])
    split = "playground, test (paper: test-dev, balanced)"
    protocol = Table(("protocol", "split", "metric"), (Line("GQA", (split, "exact_match")),), "protocol")
    return Document(titles[0], (scores, protocol, Points((note, titles[-1]))))


def cells_of(text: str) -> list[list[str]]:
    rows = [line.removesuffix(r" \\") for line in text.splitlines() if line.endswith(r" \\")]
    return [row.replace(r"\&", "").split(" & ") for row in rows]


def compiled(text: str, folder, *, packages=PACKAGES, wrapped="{}") -> str:
    """The log of pdflatex, which must end well, of a document that loads what docs/compare.md says."""
    (folder / "table.tex").write_text(text, encoding="utf-8")
    body = wrapped.format(r"\input{table}")
    (folder / "paper.tex").write_text(
        f"\\documentclass{{article}}\\usepackage{{{packages}}}\\begin{{document}}{body}\\end{{document}}\n"
    )
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, check=False, timeout=300)
    log = (folder / "paper.log").read_text(encoding="utf-8", errors="replace")
    assert ended.returncode == 0, "\n".join(line for line in log.splitlines() if line.startswith("!"))
    return log


def needs(*packages: str):
    """Skips without pdflatex and these packages."""

    def found(name: str) -> bool:
        return bool(subprocess.run(["kpsewhich", name], capture_output=True, check=False).stdout)

    there = shutil.which("pdflatex") and all(found(f"{name}.sty") for name in packages)
    return pytest.mark.skipif(not there, reason="no pdflatex with these packages")


def test_the_head_names_the_packages():
    assert f"% \\usepackage{{{PACKAGES}}}\n" in to_latex(report("SFT"))


def test_what_latex_would_read_is_escaped():
    text = to_latex(report(LATIN))
    for escaped in (
        r"50\% \& \{more\} of\_x \#1 \textasciitilde{} \textasciicircum{} \$\textbackslash{}tau\$",
        r"\ensuremath{<}b\ensuremath{>} a\textbar{}b",
        r"-{}-seeds \(-\)2.8 \(\pm\) 1 \(\times\) 2\({}^2\) \(\cdot\)",
        r"\ensuremath{\lambda} \ensuremath{\geq}",
    ):
        assert escaped in text
    assert text.split("\n", 2)[2].isascii()  # behind the head, which is a comment
    assert "-2.8" not in text.split("\n", 2)[2]


def test_a_minus_is_one_and_a_hyphen_is_one():
    body = to_latex(report("Qwen2.5-0.5B", note="POPE -11.8, seeds 1-5, [-2.9, +3.9], test-dev, a/-1"))
    assert r"POPE \(-\)11.8, seeds 1-5, [\(-\)2.9, +3.9], test-dev, a/-1" in body
    assert r"\(-\)1.2 & {[\(-\)3.0, +2.5]} & \ensuremath{<}0.001 & \textendash{} \\" in body
    assert "Qwen2.5-0.5B" in body


def test_every_row_has_a_cell_for_each_column_and_environments_are_closed():
    text = to_latex(report(LATIN, "SFT", "*best*"))
    assert text.count(r"\begin{") == text.count(r"\end{")
    assert {len(row) for row in cells_of(text)} == {5, 3}
    starts = [row[0] for row in cells_of(text)]
    assert starts[1].startswith("{[50") and "{*best*}" in starts  # `\\` would take either for its own


def test_numbers_stand_right_words_left_and_sentences_wrap():
    text = to_latex(report("SFT"))
    assert r"\begin{tabular}{lrrrr}" in text
    assert r"\begin{tabular}{l>{\raggedright\arraybackslash}p{9em}l}" in text
    assert text.index(r"\addlinespace") < text.index("paper (its own benchmarks): Switch-KD")


def test_line_breaks_in_a_title_end_nothing():
    text = to_latex(report("two\n\nlines"))
    assert text.startswith("% two lines\n") and r"\caption{two lines}" in text


def test_what_pdflatex_can_t_set_is_named_with_what_helps():
    assert "pdflatex can't set" not in to_latex(report(LATIN))
    assert "% pdflatex can't set 老师学生кот by itself" in to_latex(report(f"{CHINESE} кот"))


@needs(*PACKAGES.split(","))
def test_it_compiles_with_the_packages_its_head_names(tmp_path):
    log = compiled(to_latex(report(LATIN, "SFT", "*best*", "two\n\nlines", note=LATIN)), tmp_path)
    assert "Missing character" not in log and (tmp_path / "paper.pdf").exists()


@needs(*PACKAGES.split(","), "CJKutf8")
def test_chinese_compiles_as_its_head_says(tmp_path):
    log = compiled(
        to_latex(report(CHINESE, LATIN)),
        tmp_path,
        packages=f"{PACKAGES},CJKutf8",
        wrapped=r"\begin{{CJK}}{{UTF8}}{{gbsn}}{}\end{{CJK}}",
    )
    assert "Missing character" not in log
