"""The parts of `make bench LEVELS=gpu`, each a generator of rows: `python -m scripts.bench.gpu_parts PART` prints them as JSON.

A row's group names the device. Without a GPU the sizes are toys.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scripts.bench import step
from scripts.bench.machine import device, free_bytes, peak_flops
from scripts.bench.pairs import SMALL, Size, batch, build, paper
from scripts.bench.results import Row
from scripts.bench.rounds import Effort, Running, Variant, measure

ROOT = Path(__file__).parents[2]
HERE = torch.cuda.get_device_name() if torch.cuda.is_available() else "toy size on CPU"
GPU = device().type == "cuda"
EFFORT = Effort(3, 2) if GPU else Effort(1, 1)
LANGUAGE = {"intermediate_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2}
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TOY = Size(
    "toy",
    rows=2,
    text=24,
    vocabulary=2048,
    tower=TOWER | {"image_size": 32, "patch_size": 8},
    student=LANGUAGE | {"hidden_size": 32, "num_hidden_layers": 2},
    teacher=LANGUAGE | {"hidden_size": 64, "num_hidden_layers": 3},
)
SFT, SWITCH_KD = (next(row for row in step.ROWS if row.name == name) for name in ("SFT", "Switch-KD, ours"))


def group(name: str) -> str:
    """Return a group's title, which names the device."""
    return f"{name}, on {HERE}"


# Parts


def parity() -> Iterator[Row]:
    """Yield, for each registered loss and path, how far a step on the device is from one on the CPU in float32.

    Figures are relative: of the loss and of the gradient's norm.
    """
    size = SMALL if GPU else TOY
    cpu = torch.device("cpu")
    places = [("fp32", cpu), ("fp32", device()), ("bf16", device())]
    pairs = [build(size, cpu) for _ in places]  # random numbers of a GPU are others
    for paths, (_, where) in zip(pairs, places, strict=True):
        paths.student.to(where)
        paths.teacher.to(where)
    for name, term in _terms():
        row = Row(group=group("parity with float32 on the CPU"), name=name)
        try:
            found = [_values(paths, size, where, how, term) for paths, (how, where) in zip(pairs, places, strict=True)]
            yield row.model_copy(update={"figures": _differences(*found)})
        except Exception as error:  # noqa: BLE001 (one loss that fails takes no other with it)
            yield row.model_copy(update={"failed": _said(error)})


def _terms() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield every loss of the registry that both models' common tokenizer and tower allow, of each path."""
    from switchkd_cli import registry
    from switchkd_cli.recipe.schema import BUILT_IN

    for name in registry.LOSSES:
        told = registry.signature("loss", name)
        if told.of_spans or not set(told.sides) <= BUILT_IN.keys():
            continue  # tokens of unlike tokenizers, or a path that a recipe has to name
        against = any(side == "teacher" for side, _ in told.reads)
        for of in ("student", "switch"):
            if of == "switch" and not against:
                continue
            yield f"{name} of the {of}", {"loss": name, "of": of, "to": "teacher" if against else "labels"}


def _values(paths: Any, size: Size, where: torch.device, how: str, term: Mapping[str, Any]) -> dict[str, float]:
    """Return a step's figures."""
    from switchkd_cli.engine.training.trainer import Trainer
    from switchkd_cli.recipe.schema import Stage

    trained = ("vision",) if term["of"] == "switch" else ("vision", "projector", "language")
    fields = {"name": "bench", "data": "none", "train": trained, "lr": 1e-9, "batch": size.rows, "steps": 100}
    stage = Stage.model_validate(fields | {"objective": ({"name": "only", **term},)})
    torch.manual_seed(0)
    with closing(Trainer(stage, paths.train(), stage.steps, how, processes=_at(where))) as trainer:
        figures, _ = trainer.step([batch(size, paths, where)], diagnosed=False)
    return {"loss": figures["loss"], "gradient": figures["grad_norm"]}


def _at(where: torch.device) -> Any:
    """Return this process as the only one, on a device."""
    from switchkd_cli.engine.training.processes import Processes

    return type("AtDevice", (Processes,), {"device": where})()


def _differences(cpu: dict[str, float], fp32: dict[str, float], bf16: dict[str, float]) -> dict[str, float]:
    return {
        f"{name}, {how}": abs(found[name] - cpu[name]) / max(abs(cpu[name]), 1e-12)
        for name in ("loss", "gradient")
        for how, found in (("fp32", fp32), ("bf16", bf16))
    }


def steps() -> Iterator[Row]:
    """Yield steps of the paper's shapes: time, MFU, and peak memory over the plan's."""
    size = _size()
    chosen = [row for row in step.ROWS if row.naive is None and "cached" not in str(row.stage)]
    paths, given = _pair(size)
    rows = _measured(f"steps of the {size.name} pair", [_variant(row.name, paths, given, row) for row in chosen])
    for row, asked in zip(rows, chosen, strict=True):
        figures = dict(row.figures)
        if row.seconds:
            figures["tokens/s"] = given.sizes[0] / row.seconds.median
            if peak := peak_flops():
                figures["MFU"] = step.floor(paths, given, asked) / row.seconds.median / peak
            figures["peak over plan"] = row.peak_bytes / planned_bytes(paths, given, asked)
        yield row.model_copy(update={"figures": figures})


def planned_bytes(paths: Any, given: Any, row: step.Row) -> float:
    """Return the bytes that `--dry-run` would plan for such a step on one GPU."""
    from switchkd_cli.engine.cost.loss_memory import bytes_per_logit
    from switchkd_cli.engine.cost.step_memory import precision_of, step_memory
    from switchkd_cli.engine.cost.workload import Computation, MicroBatch, Models
    from switchkd_cli.engine.models.shape import ModelShape
    from switchkd_cli.planning.estimate import Machine

    stage, precision = step.stage_of(row, len(given.ids)), precision_of(step.precision(), 0)
    count, length = given.input_ids.shape
    micro = MicroBatch(count, len(given.images), length, int(given.predicting("answer").sum()))
    both = {"student": paths.student, **paths.frozen}
    models = Models({name: ModelShape(model) for name, model in both.items()}, paths.vocabulary)
    needed, recomputed = frozenset(stage.readings.values()), frozenset(stage.activation_checkpointing)
    computed = Computation(models, needed, frozenset(stage.train), recomputed)
    logit = bytes_per_logit(stage.objective, precision.compute, paths.vocabulary)
    machine = Machine(gpus=1, zero=0, memory=free_bytes() / 2**30, tflops=1)
    return sum(step_memory(micro, computed, precision, machine, logit).values())


def chunks() -> Iterator[Row]:
    """Yield Switch-KD's step with chunks of this many logits; the first is the default."""
    from switchkd_cli.engine import lm_head

    paths, given = _pair(_size())
    usual = lm_head.LOGITS
    sizes = [usual, *(2**n for n in (22, 23, 25, 26))]
    variants = [
        _variant(f"2^{chunk.bit_length() - 1} logits", paths, given, SWITCH_KD, partial(_with_chunk, chunk))
        for chunk in sizes
    ]
    yield from _measured("chunks of logits, Switch-KD", variants)


@contextmanager
def _with_chunk(logits: int) -> Iterator[None]:
    from switchkd_cli.engine import lm_head

    before, lm_head.LOGITS = (lm_head.LOGITS, lm_head.ON_CPU), logits
    lm_head.ON_CPU = logits
    try:
        yield
    finally:
        lm_head.LOGITS, lm_head.ON_CPU = before


def compiled() -> Iterator[Row]:
    """Yield steps with every layer of both models compiled by torch.compile, next to the usual ones."""
    paths, given = _pair(_size())
    for row in (SFT, SWITCH_KD):
        usual = _variant(f"{row.name}, as usual", paths, given, row)
        other = _variant(f"{row.name}, layers compiled", paths, given, row, partial(_with_compiled, paths))
        yield from _measured(f"torch.compile, {row.name}", [usual, other])


@contextmanager
def _with_compiled(paths: Any) -> Iterator[None]:
    for layer in _layers(paths):
        layer.compile()
    try:
        yield
    finally:
        for layer in _layers(paths):
            layer._compiled_call_impl = None


def attention() -> Iterator[Row]:
    """Yield Switch-KD's step with each attention kernel; a padded batch has a mask, which some don't take."""
    paths, given = _pair(_size())
    kernels = {"chosen by torch": None, "math": "MATH", "efficient": "EFFICIENT_ATTENTION", "cuDNN": "CUDNN_ATTENTION"}
    variants = [
        _variant(
            f"sdpa, {name}",
            paths,
            given,
            SWITCH_KD,
            partial(sdpa_kernel, getattr(SDPBackend, kernel)) if kernel else nullcontext,
        )
        for name, kernel in kernels.items()
    ]
    flash = partial(_with_attention, paths, "flash_attention_2")
    variants.append(_variant("flash_attention_2", paths, given, SWITCH_KD, flash))
    yield from _measured("attention kernels, Switch-KD", variants)


@contextmanager
def _with_attention(paths: Any, kernel: str) -> Iterator[None]:
    if importlib.util.find_spec("flash_attn") is None:
        raise RuntimeError("not installed: flash-attn")
    models = [paths.student.model, paths.teacher.model]
    before = [model.config._attn_implementation for model in models]
    try:
        for model in models:
            model.set_attn_implementation(kernel)
        yield
    finally:
        for model, kept in zip(models, before, strict=True):
            model.set_attn_implementation(kept)


def kernels() -> Iterator[Row]:
    """Yield forward KL and cross-entropy from hidden states, forward and backward: ours, Liger's and TRL's Triton kernels."""
    from scripts.bench.from_states import supervised, total
    from switchkd_cli.engine.training.objective import Objective

    count, columns, widths = (1024, 151_936, (896, 2048)) if GPU else (64, 2048, (32, 64))
    where, dtype = device(), torch.bfloat16 if GPU else torch.float32
    torch.manual_seed(0)
    states = {
        path: torch.randn(count, width, device=where, dtype=dtype)
        for path, width in zip(("student", "teacher"), widths, strict=True)
    }
    heads = {
        path: torch.randn(columns, width, device=where, dtype=dtype) / width**0.5
        for path, width in zip(states, widths, strict=True)
    }
    states["student"].requires_grad_()
    heads["student"].requires_grad_()
    given = supervised(count, columns, where)
    tokens = given.input_ids[0, 1:]

    def ours(*names: str) -> torch.Tensor:
        stage = step.stage_of(step.Row("", names), 1)
        return total(Objective(stage.objective), states, heads, given)

    def liger_ce() -> torch.Tensor:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        return LigerFusedLinearCrossEntropyLoss()(heads["student"], states["student"], tokens)

    def liger_kl() -> torch.Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=False)
        return loss(states["student"], heads["student"], states["teacher"], heads["teacher"], tokens)

    def trl_kl() -> torch.Tensor:
        from trl.trainer.distillation_trainer import _chunked_divergence_loss

        given = (states["student"][None], states["teacher"][None], heads["student"], heads["teacher"])
        return _chunked_divergence_loss(*given, torch.ones(1, count, device=where), 0.0)[0]

    trained = [states["student"], heads["student"]]
    losses = {
        "cross-entropy": {"ours": partial(ours, "ce"), "Liger": liger_ce},
        "forward KL": {"ours": partial(ours, "kd"), "Liger": liger_kl, "TRL": trl_kl},
    }
    for title, ways in losses.items():
        variants = [Variant(name, partial(_gradient, way, trained)) for name, way in ways.items()]
        yield from _measured(f"head and {title}, {count} positions of {columns:,}", variants)


@contextmanager
def _gradient(loss: Callable[[], torch.Tensor], of: Sequence[torch.Tensor]) -> Iterator[Running]:
    yield Running({"loss": lambda: torch.autograd.grad(loss(), of)})


def processes() -> Iterator[Row]:
    """Yield what a process group of one costs, NCCL on GPUs and gloo on CPUs: a sum, and SFT's step under torch's DDP."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    dist.init_process_group("nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    numbers = torch.ones(2**26 if GPU else 2**14, device=device())
    model, inputs = _whole_student()
    summed = Running({"sum": lambda: dist.all_reduce(numbers)})
    plain, wrapped = (_plain_step(of, model, inputs) for of in (model, DistributedDataParallel(model)))
    title = f"a process group of one, {dist.get_backend()}"
    yield from _measured(title, [Variant(f"sum of {numbers.nbytes >> 10:,} KiB", partial(nullcontext, summed))])
    variants = [("plain torch", plain), ("plain torch, DDP", wrapped)]
    yield from _measured(f"{title}: SFT", [Variant(name, partial(nullcontext, way)) for name, way in variants])


def zero() -> Iterator[Row]:
    """Yield Switch-KD's step under DeepSpeed's ZeRO 2, with one process."""
    from switchkd_cli.recipe.schema import DeepSpeed

    paths, given = _pair(_size())
    with TemporaryDirectory() as folder:
        found = _trainer_step(paths, given, folder, deepspeed=DeepSpeed(zero=2))
    yield Row(group=group("DeepSpeed ZeRO 2, one process"), name="Switch-KD's step", figures=found)


def _trainer_step(paths: Any, given: Any, folder: str, **how: Any) -> dict[str, float]:
    """Return the loss and seconds of the package's own step, after one that is not timed."""
    from switchkd_cli.engine.training.trainer import Trainer

    stage = step.stage_of(SWITCH_KD, len(given.ids))
    with closing(Trainer(stage, paths, stage.steps, step.precision(), states=Path(folder) / "s", **how)) as trainer:
        trainer.step([given], diagnosed=False)
        began = time.perf_counter()
        figures, _ = trainer.step([given], diagnosed=False)
        if GPU:
            torch.cuda.synchronize()
        return {"seconds": time.perf_counter() - began, "loss": figures["loss"]}


def fsdp() -> Iterator[Row]:
    """Yield SFT's step under FSDP2, with one process, which FSDP2 of the package leaves whole: plain torch around the student."""
    import torch.distributed as dist
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("nccl" if GPU else "gloo", store=dist.HashStore(), rank=0, world_size=1)
    model, inputs = _whole_student()
    mesh = dist.init_device_mesh(device().type, (1,))
    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    variant = Variant("SFT", partial(nullcontext, _plain_step(model, model, inputs)))
    yield from _measured("FSDP2, one process: plain torch around the student", [variant])


def _whole_student() -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return the student as transformers' own model, all of it trained that has a gradient, and its inputs."""
    from scripts.bench.three_forwards import pixels

    paths, given = _pair(_size())
    paths.requires_grad_(False)
    for part in ("vision", "projector", "language"):
        for parameter in paths.student.used_parameters(part).values():
            parameter.requires_grad_(True)
    inputs = {"input_ids": given.input_ids, "attention_mask": given.attention.long(), "labels": given.labels}
    return paths.student.model, inputs | {"pixel_values": pixels(given)}


def _layers(module: nn.Module) -> list[nn.Module]:
    return [m for m in module.modules() if type(m).__name__.endswith(("DecoderLayer", "EncoderLayer"))]


def _plain_step(forward: nn.Module, model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> Running:
    """Return SFT's step as plain torch takes it, forward through a wrapped model."""
    adamw = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-9)

    def taken() -> None:
        with torch.autocast(device().type, torch.bfloat16, enabled=GPU):
            loss = forward(**inputs, use_cache=False).loss
        loss.backward()
        adamw.step()
        adamw.zero_grad()

    return Running({"step": taken})


def distillation() -> Iterator[Row]:
    """Yield a real distillation: the quickstart's Switch-KD row, with fewer steps and questions."""
    from scripts.bench.startup import PROGRAM

    fewer = ["evaluation.items=40"] if GPU else [f"stages.{name}.steps=2" for name in ("pretrain", "distill")]
    fewer += [] if GPU else ["stages.distill.validation=null", "evaluation=null"]
    with TemporaryDirectory() as folder:
        began = time.monotonic()
        command = [
            sys.executable,
            *PROGRAM,
            "distill",
            "recipes/quickstart.yaml",
            "--row",
            "switch-kd",
            *fewer,
            "--out",
            folder,
        ]
        done = subprocess.run(command, check=False, cwd=ROOT, capture_output=True, text=True)
        row = Row(group=group("a real distillation"), name="quickstart, shortened: " + " ".join(fewer))
        if done.returncode:
            yield row.model_copy(update={"failed": f"exit code {done.returncode}: {done.stderr[-300:]}"})
            return
        yield row.model_copy(update={"figures": {"seconds": time.monotonic() - began, **_losses(Path(folder))}})


def _losses(folder: Path) -> dict[str, float]:
    (metrics,) = folder.glob("quickstart/switch-kd/*/metrics.jsonl")
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    losses = [line["loss"] for line in lines if line.get("stage") == "distill" and "loss" in line]
    return {"first loss": losses[0], "last loss": losses[-1]}


def _size() -> Size:
    return paper("3B" if free_bytes() > 70 * step.GIB else "1.5B") if GPU else TOY


def _pair(size: Size) -> tuple[Any, Any]:
    paths = build(size, device())
    return paths, batch(size, paths, device())


def _variant(
    name: str, paths: Any, given: Any, row: step.Row, around: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> Variant:
    return Variant(name, partial(_stepping, paths, given, row, around))


@contextmanager
def _stepping(
    paths: Any, given: Any, row: step.Row, around: Callable[[], AbstractContextManager[Any]]
) -> Iterator[Running]:
    with around(), step.stepping(paths, given, row) as running:
        yield running


def _measured(title: str, variants: Sequence[Variant]) -> list[Row]:
    """Return the rows of the variants that run here, and for the others why they don't."""
    failed = {}
    for variant in variants:
        try:
            with variant.ready() as running:
                for phase in running.phases.values():
                    phase()
        except Exception as error:  # noqa: BLE001 (a kernel that is missing takes no other with it)
            failed[variant.name] = Row(group=group(title), name=variant.name, failed=_said(error))
    standing = [variant for variant in variants if variant.name not in failed]
    rows = {row.name: row for row in measure(group(title), standing, EFFORT)} if standing else {}
    return [{**failed, **rows}[variant.name] for variant in variants]


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


PARTS = {
    part.__name__: part
    for part in (parity, steps, chunks, compiled, attention, kernels, processes, zero, fsdp, distillation)
}

if __name__ == "__main__":
    for found in PARTS[sys.argv[1]]():
        print(found.model_dump_json(), flush=True)
