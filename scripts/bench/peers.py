"""A step of ours next to what a user would pick instead, on the same models, rows and objective: CPU seconds and peak bytes.

Named only (`make bench LEVELS=peers`): it installs other packages into environments of their own, under .venv-peers/.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from scripts.bench import step
from scripts.bench.pairs import MIDDLING, SMALL, WIDE, Size, batch, build
from scripts.bench.results import Level, Row, Spread, with_ratios
from scripts.bench.rounds import Effort
from scripts.bench.three_forwards import pixels
from switchkd_cli.benchmarks import TEN

ROOT = Path(__file__).parents[2]
PACKAGES = {"trl": ("trl==1.16.0",), "ms-swift": ("ms-swift==4.6.0", "msgspec"), "decord": ("decord==0.6.0",)}
"""Environment -> what is installed into it; everything else runs in the environment of this process."""
EQUAL = 1e-4  # relative difference of losses
SFT, KL, SWITCH, WINDOW = "SFT", "forward KL", "Switch-KD", "Switch-KD in a window of 64"
TERMS = {SFT: ("ce",), KL: ("kd",), SWITCH: step.SWITCH, WINDOW: ("ce", "align in 64", "vsd in 64")}
CHECKPOINTING = {"activation_checkpointing": True}
OURS = "ours"


@dataclass(frozen=True)
class Variant:
    """A way of taking a step for an objective: a function of peer_worker.py, its settings, and the environment it needs."""

    objective: str
    name: str
    way: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: str = ""


def _ours(objective: str, name: str = OURS, stage: Mapping[str, Any] | None = None, **more: str) -> Variant:
    return Variant(objective, name, "ours", {"terms": TERMS[objective], "stage": stage or {}, **more})


def _checkpointed(objective: str, name: str, way: str, environment: str) -> list[Variant]:
    """Return a trainer as it is by default, which recomputes activations, and one that keeps them."""
    plain = Variant(objective, f"{name}, activations kept", way, {"checkpointing": False}, environment)
    return [Variant(objective, name, way, environment=environment), plain]


VARIANTS = (
    _ours(SFT),
    _ours(SFT, "ours, activation checkpointing", CHECKPOINTING),
    Variant(SFT, "plain transformers", "plain", {"objective": "sft"}),
    *_checkpointed(SFT, "TRL SFTTrainer", "trl_sft", "trl"),
    _ours(KL),
    _ours(KL, "ours, activation checkpointing", CHECKPOINTING),
    Variant(KL, "plain transformers, all logits", "plain", {"objective": "kl"}),
    Variant(KL, "plain transformers, masked first", "plain", {"objective": "kl", "masked_first": True}),
    *_checkpointed(KL, "TRL DistillationTrainer", "trl_distillation", "trl"),
    *_checkpointed(KL, "TRL GOLD", "trl_gold", "trl"),
    *_checkpointed(KL, "ms-swift GKD", "swift_gkd", "ms-swift"),
    _ours(SWITCH),
    _ours(SWITCH, "ours, switch pass recomputed", {"activation_checkpointing": ("switch",)}),
    _ours(SWITCH, "ours, activation checkpointing", CHECKPOINTING),
    _ours(SWITCH, "naive: three whole passes", naive="masked first"),
    _ours(SWITCH, "CompoDistill-like: every position, masked afterwards", naive="every position"),
    _ours(WINDOW),
    _ours(WINDOW, "naive: three whole passes, explicit pairs", naive="pairs"),
)
"""The first of an objective is ours, the yardstick."""
STEPS = {"small": 5}
"""Timed steps a round; one otherwise."""
ITEMS = 20  # questions of each benchmark
ANSWERS = f"answers to {ITEMS} questions of each benchmark"
READERS = tuple(
    Variant(ANSWERS, name, "answers", {"by": by, "items": ITEMS, "batch": batch}, environment)
    for name, by, batch, environment in (
        ("ours, in batches of 64", OURS, 64, ""),
        ("ours, one by one", OURS, 1, ""),
        ("lmms-eval's llava_hf, one by one", "lmms-eval", 1, "decord"),  # which it imports
    )
)


def measure_level(quick: bool) -> Level:
    effort = Effort(1 if quick else 3, 1)
    return measure_at([SMALL] if quick else [SMALL, WIDE, MIDDLING], VARIANTS, effort, READERS)


def measure_at(
    sizes: Sequence[Size], variants: Sequence[Variant], effort: Effort, readers: Sequence[Variant] = ()
) -> Level:
    """Measure the level for given pairs of models, one after another, and then answering questions."""
    setting = {
        "clock": "CPU seconds of one thread, float32",
        "equal losses": f"within {EQUAL:g} of ours, or no figures",
    }
    rows: list[Row] = []
    missing: dict[str, str] = {}
    for environment in {variant.environment: None for variant in [*variants, *readers] if variant.environment}:
        try:
            setting[environment] = prepared(environment)
        except RuntimeError as error:
            missing[environment] = setting[environment] = f"skipped: {error}"
            print(f"{environment} is skipped: {error}", file=sys.stderr)
    for size in sizes:
        found, setting[f"{size.name} pair"] = _of_size(size, variants, effort, missing)
        rows += found
    if readers:
        with TemporaryDirectory() as folder:
            rows += _of_variants("", readers, Path(folder), effort, missing)
    return Level(title="peers: one optimiser step, next to others", setting=setting, rows=rows)


# Environments


def _python(environment: str) -> str:
    return str(ROOT / ".venv-peers" / environment / "bin" / "python") if environment else sys.executable


def prepared(environment: str) -> str:
    """Make an environment if it is not there yet; return the versions in it.

    It sees this process's packages and has others only where the peer asks for other versions; torch stays the same.
    Raises RuntimeError with the reason if it can't be had.
    """
    python = _python(environment)
    if not Path(python).is_file():
        print(f"installing {' '.join(PACKAGES[environment])} into .venv-peers/{environment} ...", file=sys.stderr)
    folder = Path(python).parents[1]
    if not (folder / "ready").is_file():
        _done([sys.executable, "-m", "venv", "--clear", str(folder)])
        site = folder / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
        (site / "shared.pth").write_text(sysconfig.get_path("purelib"))
        (folder / "pins.txt").write_text(f"torch=={torch.__version__}\n")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-c", f"{folder}/pins.txt"]
        _done([*install, *PACKAGES[environment]])
        (folder / "ready").touch()
    names = [package.partition("==")[0] for package in PACKAGES[environment][:1]] + ["transformers", "torch"]
    lookup = f"from importlib.metadata import version; print(*(n + ' ' + version(n) for n in {names}), sep=', ')"
    return _done([python, "-c", lookup]).strip()


def _done(command: list[str]) -> str:
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=1200)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RuntimeError(f"{error}") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(errors[-1] if errors else f"exit code {done.returncode}")
    return done.stdout


# Processes


@dataclass
class Worker:
    """A peer's process (peer_worker.py), asked and answered a line at a time."""

    process: subprocess.Popen[str]

    def ask(self, variant: Variant, runs: int, counted: bool) -> dict[str, Any]:
        asked = {"way": variant.way, "settings": dict(variant.settings), "runs": runs, "counted": counted}
        try:
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        except BrokenPipeError:
            answer = ""
        return json.loads(answer) if answer else {"failed": f"its process ended, {self.process.poll()}"}


@contextmanager
def _working(environment: str, folder: Path) -> Iterator[Worker]:
    """Yield a process on a CPU with one thread, so that its CPU seconds hold no waiting. Its log is FOLDER/NAME.log."""
    alone = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    quiet = {"KINETO_LOG_LEVEL": "99", "TRL_EXPERIMENTAL_SILENCE": "1"}
    command = [_python(environment), "-m", "scripts.bench.peer_worker", str(folder)]
    piped = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    with (folder / f"{environment or 'own'}.log").open("w") as log:
        process = subprocess.Popen(command, **piped, stderr=log, env=os.environ | alone | quiet)
        try:
            yield Worker(process)
        finally:
            process.kill()
            process.wait()


# Measurements


def _of_size(
    size: Size, variants: Sequence[Variant], effort: Effort, missing: Mapping[str, str]
) -> tuple[list[Row], str]:
    with TemporaryDirectory() as name:
        floors, setting = _written(size, Path(name))
        rows = _of_variants(
            f"{size.name} pair, ", variants, Path(name), effort, missing, STEPS.get(size.name, effort.runs)
        )
    return _with_figures(rows, size, floors), setting


def _of_variants(
    label: str, variants: Sequence[Variant], folder: Path, effort: Effort, missing: Mapping[str, str], runs: int = 1
) -> list[Row]:
    """Return a row for each variant, objective by objective; the first of each is ours."""
    there = [variant for variant in variants if variant.environment not in missing]
    with ExitStack() as stack:
        needed = {variant.environment for variant in there}
        workers = {environment: stack.enter_context(_working(environment, folder)) for environment in needed}
        answers = _in_turn(label, there, workers, effort.rounds, runs)
    rows: list[Row] = []
    for objective in dict.fromkeys(variant.objective for variant in variants):
        group, of_it = f"{label}{objective}", [v for v in variants if v.objective == objective]
        ours = answers[objective, of_it[0].name][0]
        rows += with_ratios([_row(group, v, answers.get((objective, v.name)), ours, missing) for v in of_it])
    return rows


def _written(size: Size, folder: Path) -> tuple[dict[str, float], str]:
    """Write the pair and its rows for the workers; return each objective's operations at least, and the sizes in words."""
    cpu = torch.device("cpu")
    paths = build(size, cpu)
    given = batch(size, paths, cpu)
    for name, model in (("student", paths.student), ("teacher", paths.teacher)):
        model.model.save_pretrained(folder / name)
        model.inputs.processor.save_pretrained(folder / name)
    rows = {"input_ids": given.input_ids, "attention_mask": given.attention.long(), "labels": given.labels}
    torch.save(rows | {"pixel_values": pixels(given)}, folder / "rows.pt")
    (folder / "size.json").write_text(json.dumps(asdict(size)))
    floors = {objective: step.floor(paths, given, step.Row("", terms)) for objective, terms in TERMS.items()}
    return floors, step.sizes_of(paths, given)


def _in_turn(
    label: str, variants: Sequence[Variant], workers: Mapping[str, Worker], rounds: int, runs: int
) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """Return each variant's answers, round by round, each beginning with another; the first counts memory, too."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for number in range(rounds):
        print(f"{label}round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        first = number % len(variants)
        for variant in [*variants[first:], *variants[:first]]:
            answers = found.setdefault((variant.objective, variant.name), [])
            if not (answers and "failed" in answers[-1]):
                answers.append(workers[variant.environment].ask(variant, runs, counted=not number))
    return found


def _row(
    group: str, variant: Variant, answers: list[dict[str, Any]] | None, ours: dict[str, Any], missing: Mapping[str, str]
) -> Row:
    row = Row(group=group, name=variant.name)
    if answers is None:
        return row.model_copy(update={"failed": missing[variant.environment]})
    if failed := [answer["failed"] for answer in answers if "failed" in answer]:
        return row.model_copy(update={"failed": failed[0]})
    loss = answers[0]["loss"]
    if abs(loss - ours["loss"]) > EQUAL * abs(ours["loss"]):
        what = "other answers" if variant.objective == ANSWERS else f"another loss: {loss:.7g}, ours {ours['loss']:.7g}"
        return row.model_copy(update={"failed": what})
    seconds = Spread.of([answer["seconds"] for answer in answers])
    asked = variant.settings.get("items", 0) * len(TEN)
    figures = {"answers/s": asked / seconds.median} if asked else {"loss": loss}
    return row.model_copy(update={"seconds": seconds, "extra_bytes": answers[0]["bytes"], "figures": figures})


def _with_figures(rows: Sequence[Row], size: Size, floors: Mapping[str, float]) -> list[Row]:
    """Return the rows, with ours compared with the fastest and the leanest peer, and with its floor over the fastest SFT."""
    groups = {f"{size.name} pair, {objective}": floor for objective, floor in floors.items()}
    sfts = [row.seconds.median for row in rows if row.group == f"{size.name} pair, {SFT}" and row.seconds]
    found = []
    for row in rows:
        figures = dict(row.figures)
        peers = [r for r in rows if r.group == row.group and not r.name.startswith(OURS) and r.seconds]
        if row.seconds and row.name.startswith(OURS) and peers:
            fastest = min(peers, key=lambda peer: peer.seconds.median)
            figures["over fastest"] = row.seconds.over(fastest.seconds).median
            figures["over leanest"] = row.extra_bytes / min(peer.extra_bytes for peer in peers)
            if sfts:
                operations = groups[row.group] / groups[f"{size.name} pair, {SFT}"]
                figures["above floor"] = row.seconds.median / min(sfts) / operations
        found.append(row.model_copy(update={"figures": figures}))
    return found
