"""Tables and figure of docs/scale.md, from plans: hours and dollars over the number of GPUs, and others' printed hours.

python -m scripts.scale              # print the tables, draw docs/scale.svg: about a minute
python -m scripts.scale images       # how many images a core decodes and prepares in a second
"""

import io
import sys
import time
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import matplotlib.style
import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from transformers import SiglipImageProcessor

from switchkd_cli.engine.cost import model_facts
from switchkd_cli.engine.cost.run_estimate import estimate_run
from switchkd_cli.planning.estimate import Machine, StageEstimate
from switchkd_cli.recipe.load import load
from switchkd_cli.report.figures import style

ROOT = Path(__file__).parents[1]
PAGE, FIGURE = ROOT / "docs" / "scale.md", ROOT / "docs" / "scale.svg"
TABLE_1 = ROOT / "recipes" / "table1_0.5b.yaml"
NOWHERE = Path("no such folder")  # nothing is there yet
CLIP, SIGLIP = "openai/clip-vit-large-patch14-336", "google/siglip-so400m-patch14-384"

GPUS = tuple(2**n for n in range(13))
ROWS = {"Table 1 (665 K rows)": None, "10 M rows": 10**7, "1 B rows": 10**9}
BATCHES = {"batch 128": None, "batch 1,024": 1024}
STOPPED = 2 / 3  # a doubling of GPUs that leaves more than this share of the hours no longer helps


class Point(NamedTuple):
    """What some GPUs take: hours, dollars, and the term that adds most to the longest stage's hours."""

    gpus: int
    hours: float
    dollars: float
    bound: str


def point(gpus: int, rows: int | None, batch: int | None) -> Point:
    """Plan both stages of Table 1's Switch-KD, the second on this many rows; without scoring."""
    changes = [f"stages.{stage}.batch={batch}" for stage in ("pretrain", "distill") if batch]
    if rows:
        changes += [f"stages.distill.steps={rows // (batch or 128)}", "stages.distill.epochs=null"]
    machine = Machine(gpus=gpus)
    stages = estimate_run(load(TABLE_1, None, changes), machine, NOWHERE, {}).stages
    hours = sum(stage.hours or 0.0 for stage in stages)
    longest = max(stages, key=lambda stage: stage.hours or 0.0)
    return Point(gpus, hours, hours * gpus * machine.price, longest.bound)


@cache
def curve(rows: int | None, batch: int | None) -> list[Point]:
    return [point(gpus, rows, batch) for gpus in GPUS]


def knee(points: Sequence[Point]) -> Point:
    """Return the point from which twice the GPUs no longer take a third off the hours."""
    pairs = pairwise(points)
    return next((one for one, twice in pairs if twice.hours > STOPPED * one.hours), points[-1])


def table_of_gpus() -> str:
    """A line for each data set and batch: hours and dollars on 8 GPUs, at the knee, and on the most."""
    head = "| data, batch | 8 GPUs | knee | hours there | cost there | bound there by | 4,096 GPUs |"
    lines = [head, "|---" * 7 + "|"]
    for name, rows in ROWS.items():
        for batch_name, batch in BATCHES.items():
            points = curve(rows, batch)
            eight, most, best = points[GPUS.index(8)], points[-1], knee(points)
            first = f"| {name}, {batch_name} | {_money(eight)} | {best.gpus:,} GPUs | {best.hours:,.2f} h | "
            lines.append(first + f"${best.dollars:,.0f} | {best.bound} | {_money(most)} |")
    return "\n".join(lines)


def _money(at: Point) -> str:
    return f"{at.hours:,.2f} h, ${at.dollars:,.0f}"


def figure() -> Figure:
    """Hours and dollars over GPUs, both axes logarithmic; a ring is the knee."""
    matplotlib.style.use(style.SETTINGS)
    drawn = style.new_figure(8.0, 3.6)
    hours, dollars = drawn.subplots(1, 2, sharex=True)
    for (name, rows), colour in zip(ROWS.items(), style.PALETTE, strict=False):
        for (batch_name, batch), line in zip(BATCHES.items(), ("-", style.DASHED), strict=True):
            points = curve(rows, batch)
            best = knee(points)
            label = f"{name}, {batch_name}"
            for axes, field in ((hours, "hours"), (dollars, "dollars")):
                axes.plot(GPUS, [getattr(p, field) for p in points], color=colour, linestyle=line, label=label)
                axes.plot(best.gpus, getattr(best, field), "o", color=colour, fillstyle="none")
    for axes, title in ((hours, "hours of training"), (dollars, "dollars, idle GPUs too")):
        axes.set(xscale="log", yscale="log", title=title, xlabel="GPUs")
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
        axes.set_xticks(GPUS[::3], [f"{gpus:,}" for gpus in GPUS[::3]])
    style.legend_below(drawn, hours, most=2)
    return drawn


class Printed(NamedTuple):
    """Hours that somebody printed for a training, on A100s, of our two stages' data with the encoder frozen."""

    name: str
    language: str
    vision: str
    gpus: int
    stage: int
    zero: int
    hours: float
    source: str


LLAVA = "LLaVA's README"
FACTORY = "TinyLLaVA_Factory, issue 67"
PRINTED = (
    Printed("LLaVA-1.5 7B, pretraining", "vicuna-7b", CLIP, 8, 0, 2, 3.5, LLAVA),
    Printed("LLaVA-1.5 7B, tuning", "vicuna-7b", CLIP, 8, 1, 3, 10, LLAVA),
    Printed("LLaVA-1.5 13B, pretraining", "vicuna-13b", CLIP, 8, 0, 2, 5.5, LLAVA),
    Printed("LLaVA-1.5 13B, tuning", "vicuna-13b", CLIP, 8, 1, 3, 20, LLAVA),
    Printed("TinyLlama-1.1B and SigLIP, pretraining", "tinyllama-1.1b", SIGLIP, 4, 0, 3, 2.5, FACTORY),
    Printed("TinyLlama-1.1B and SigLIP, tuning", "tinyllama-1.1b", SIGLIP, 4, 1, 3, 6.5, FACTORY),
    Printed("StableLM-2-1.6B and SigLIP, pretraining", "stablelm-2-1.6b", SIGLIP, 4, 0, 3, 2.6, FACTORY),
    Printed("StableLM-2-1.6B and SigLIP, tuning", "stablelm-2-1.6b", SIGLIP, 4, 1, 3, 7.5, FACTORY),
    Printed("Phi-2 and SigLIP, pretraining", "phi-2", SIGLIP, 4, 0, 3, 5, FACTORY),
    Printed("Phi-2 and SigLIP, tuning", "phi-2", SIGLIP, 4, 1, 3, 14, FACTORY),
    Printed("Phi-2 and CLIP, pretraining", "phi-2", CLIP, 4, 0, 3, 4, FACTORY),
    Printed("Phi-2 and CLIP, tuning", "phi-2", CLIP, 4, 1, 3, 13, FACTORY),
)
A100 = {"tflops": 312.0, "intra_gbps": 2400.0}


def _language(kind: str, width: int, inner: int, layers: int, heads: int, keys: int, vocabulary: int) -> dict:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers, "vocab_size": vocabulary}
    heads_of = {"num_attention_heads": heads, "num_key_value_heads": keys}
    return {"config": {"model_type": kind, **sizes, **heads_of}, "tokens": vocabulary - 1}


LANGUAGES = {
    "vicuna-7b": _language("llama", 4096, 11008, 32, 32, 32, 32_000),
    "vicuna-13b": _language("llama", 5120, 13824, 40, 40, 40, 32_000),
    "tinyllama-1.1b": _language("llama", 2048, 5632, 22, 32, 4, 32_000),
    "stablelm-2-1.6b": _language("stablelm", 2048, 5632, 24, 32, 32, 100_352),
    "phi-2": _language("phi", 2560, 10240, 32, 32, 32, 51_200),
}
"""Shapes of language models as their config.json publish them."""


def planned(printed: Printed) -> StageEstimate:
    """Plan the same training: layers of the language model are recomputed, as in both projects' scripts; no checkpoints."""
    model_facts.published()["language"].update(LANGUAGES)  # type: ignore[attr-defined]  # in this process alone
    changes = [f"student.language={printed.language}", f"student.vision={printed.vision}", "teacher=null"]
    changes += [f"stages.{stage}.activation_checkpointing=[student]" for stage in ("pretrain", "distill")]
    changes += ["stages.distill.micro_batch=16", "checkpoints.every_minutes=null"]
    machine = Machine(gpus=printed.gpus, zero=printed.zero, **A100)
    return estimate_run(load(TABLE_1, "sft-frozen", changes), machine, NOWHERE, {}).stages[printed.stage]


def table_of_printed() -> str:
    """Printed and planned hours, and the utilisation with which the plan would be right."""
    lines = [
        "| training, on A100s | GPUs | printed | planned | ratio | utilisation that fits | printed in |",
        "|---" * 7 + "|",
    ]
    for of in PRINTED:
        stage = planned(of)
        hours, operations = stage.hours or 0.0, stage.time["operations"].takes
        fits = Machine().utilisation * operations / (of.hours - (hours - operations))
        figures = f"{of.hours:g} h | {hours:.1f} h | {hours / of.hours:.2f} | {fits:.0%}"
        lines.append(f"| {of.name} | {of.gpus} | {figures} | {of.source} |")
    return "\n".join(lines)


def images_per_second(count: int = 200) -> tuple[float, float]:
    """Images of 640 x 480 that one core decodes, and that it decodes and prepares at 384 x 384, in a second of its time."""
    draw = np.random.default_rng(0)
    coarse = Image.fromarray(draw.integers(0, 255, (60, 80, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    pixels = np.clip(np.asarray(coarse) + draw.normal(0, 9, (480, 640, 3)), 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    prepare = SiglipImageProcessor(size={"height": 384, "width": 384})
    began = time.process_time()
    for _ in range(count):
        image = Image.open(io.BytesIO(file.getvalue())).convert("RGB")
    decoded = time.process_time()
    for _ in range(count):
        prepare(image, return_tensors="pt")
    decoding, preparing = decoded - began, time.process_time() - decoded
    return count / decoding, count / (decoding + preparing)


def main() -> None:
    if sys.argv[1:] == ["images"]:
        print("decoded: {:.0f} images a second; decoded and prepared: {:.0f}".format(*images_per_second()))
        return
    print(table_of_gpus(), table_of_printed(), sep="\n\n")
    style.write(figure(), FIGURE.parent, FIGURE.stem, ["svg"])


if __name__ == "__main__":
    main()
