"""What the paper finds, as data: which row lies above which, in which recipe, and who says so.

Nothing stands here that could not be read in one of the sources that are named. The tags are those of the recipes:
[S] stated by the authors, [C] computed from numbers that they print, [I] inferred, [T] a third party's reading.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from switchkd_cli.report.tables.columns import AVERAGE

Tag = Literal["S", "C", "I", "T"]
TABLE_3 = "supplement, Table 3"
TABLE_4 = "supplement, Table 4"
TABLE_5 = "supplement, Table 5"
SECTION_C = "supplement, section C"
SUMMARY = "arxivlens' summary"
SWITCH_KD = ("components", "table1_0.5b", "visual_encoder", "methods", "quickstart")
"""Recipes with the rows switch-kd and sft-frozen of the 0.5B student; quickstart is the same in small."""


@dataclass(frozen=True)
class Finding:
    """`ours` lies above `theirs`, by `printed` points if the paper says by how much."""

    claim: str
    tag: Tag
    source: str
    recipes: tuple[str, ...]
    """Where it can be put to the test; the first of them that a report holds is taken."""
    ours: str
    theirs: str
    printed: float | None
    benchmark: str = AVERAGE
    alike: bool = False
    """Whether the claim is that the two rows are as good as one another."""


FINDINGS = (
    Finding(
        "Switch-KD is above SFT with a frozen encoder (0.5B, 3B teacher)",
        *("S", TABLE_5),
        SWITCH_KD,
        *("switch-kd", "sft-frozen", 3.6),
    ),
    Finding(
        "Switch-KD is above SFT with a frozen encoder (1.5B, 7B teacher)",
        *("S", TABLE_5),
        ("table1_1.5b",),
        *("switch-kd", "sft-frozen", 1.3),
    ),
    Finding(
        "On VizWiz Switch-KD is above SFT with a frozen encoder",
        *("C", TABLE_5),
        SWITCH_KD,
        *("switch-kd", "sft-frozen", 16.0, "vizwiz_vqa_val"),
    ),
    Finding(
        "On MMMU SFT with a frozen encoder is above Switch-KD",
        *("C", TABLE_5),
        SWITCH_KD,
        *("sft-frozen", "switch-kd", 3.8, "mmmu_val"),
    ),
    Finding(
        "On ScienceQA SFT with a frozen encoder is above Switch-KD",
        *("C", TABLE_5),
        SWITCH_KD,
        *("sft-frozen", "switch-kd", 1.2, "scienceqa_img"),
    ),
    Finding(
        "VSD adds to Align",
        *("T", SUMMARY),
        ("components", "weights", "quickstart"),
        *("switch-kd", "align", 1.3),
    ),
    Finding(
        "Align alone is above SFT with a frozen encoder",
        *("I", "supplement, Table 4, PT-DFT taken for Align alone"),
        ("components", "quickstart"),
        *("align", "sft-frozen", 2.3),
    ),
    Finding(
        "PT-DFT is above PT-SFT",
        *("S", TABLE_4),
        ("training_scheme",),
        *("pt-dft", "pt-sft-frozen", 2.3),
    ),
    Finding(
        "PT-DFT is above DPT-SFT: what gains is DFT",
        *("S", TABLE_4),
        ("training_scheme",),
        *("pt-dft", "dpt-sft", 1.4),
    ),
    Finding(
        "DPT-SFT is above PT-SFT, by little",
        *("S", TABLE_4),
        ("training_scheme",),
        *("dpt-sft", "pt-sft-frozen", 0.9),
    ),
    Finding(
        "DPT-SFT is above PT-SFT on MME",
        *("S", TABLE_4),
        ("training_scheme",),
        *("dpt-sft", "pt-sft-frozen", 4.1, "mme"),
    ),
    Finding(
        "DPT-SFT is above PT-SFT on VizWiz",
        *("S", TABLE_4),
        ("training_scheme",),
        *("dpt-sft", "pt-sft-frozen", 6.5, "vizwiz_vqa_val"),
    ),
    Finding(
        "DPT before DFT changes little",
        *("S", TABLE_4),
        ("training_scheme",),
        *("dpt-dft", "pt-dft", -0.1),
        alike=True,
    ),
    Finding(
        "Reverse KL is above forward KL in DBiLD",
        *("T", f"{SUMMARY}; a survey's note says 0.5"),
        ("loss",),
        *("dbild", "dbild-forward", 0.4),
    ),
    Finding(
        "SFT from the teacher's encoder is no better than from the student's own",
        *("S", TABLE_3),
        ("visual_encoder",),
        *("sft-frozen", "sft-of-teacher-frozen", 0.5),
    ),
    Finding(
        "Switch-KD is above SFT from the teacher's encoder",
        *("S", TABLE_3),
        ("visual_encoder",),
        *("switch-kd", "sft-of-teacher-frozen", 4.1),
    ),
    Finding(
        "A 7B teacher helps the 0.5B student",
        *("S", TABLE_5),
        ("teacher_size",),
        *("t7-small", "none-small", 3.3),
    ),
    Finding(
        "A 3B teacher helps the 1.5B student",
        *("S", TABLE_5),
        ("teacher_size",),
        *("t3-large", "none-large", 0.8),
    ),
    Finding(
        "The 0.5B student prefers the 3B teacher",
        *("S", TABLE_5),
        ("teacher_size",),
        *("t3-small", "t7-small", 0.3),
    ),
    Finding(
        "The 1.5B student prefers the 7B teacher",
        *("S", TABLE_5),
        ("teacher_size",),
        *("t7-large", "t3-large", 0.5),
    ),
    Finding(
        "Switch-KD is above LLaVA-KD (0.5B)",
        *("S", f"{SECTION_C}, which says 1.1; 1.2 by the printed averages"),
        ("methods",),
        *("switch-kd", "llava-kd", 1.2),
    ),
    Finding(
        "LLaVA-KD is above SFT with a frozen encoder (0.5B)",
        *("C", "Table 1"),
        ("methods",),
        *("llava-kd", "sft-frozen", 2.4),
    ),
    Finding(
        "Switch-KD is above Align-KD",
        *("S", f"{SECTION_C}, of other data and language models"),
        ("methods",),
        *("switch-kd", "align-kd", 4.4),
    ),
)
