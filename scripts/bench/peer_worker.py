"""One peer's process: it takes steps of other libraries' trainers, of plain loops or of ours, and says what they cost.

    python -m scripts.bench.peer_worker FOLDER

reads a JSON object a line (`way`, `settings`, `runs`, `counted`) and answers each with one. FOLDER has the pair's models and
rows as `peers.py` wrote them. A peer's own package may be missing, or have another transformers: so imports are local.

Every step is one micro-batch, forward and backward, the gradient clipped to 1, and fused AdamW over the whole student. What a
trainer does around that (reading data, logging, saving, generating answers) is left out: it is cheaper here than for its users.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.nn.utils.rnn import pad_sequence

from scripts.bench.allocated import peak_bytes_on_cpu

IGNORE = -100
RATE = 1e-9  # so low that weights, and so the work, stay the same
Step = Callable[[], float]
"""Take one step and return its loss, or another number that has to be ours."""


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # what libraries print goes to the log, not between the answers
    os.dup2(2, 1)
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(_measured(folder, **json.loads(line))), file=answers, flush=True)


def _measured(folder: Path, way: str, settings: dict[str, Any], runs: int, counted: bool) -> dict[str, Any]:
    """Return the loss (or what else is compared) of a first step that is not timed, and the CPU seconds of `runs` more, or peak bytes of one."""
    try:
        with WAYS[way](folder, **settings) as step:
            found: dict[str, Any] = {"loss": step()}
            if counted:
                found["bytes"] = peak_bytes_on_cpu(step)
            found["seconds"] = [_cpu_seconds(step) for _ in range(runs)]
            return found
    except Exception as error:  # noqa: BLE001 (a peer that fails takes no other with it)
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}".splitlines()[0][:300]}
    finally:
        gc.collect()


def _cpu_seconds(step: Step) -> float:
    began = time.process_time()
    step()
    return time.process_time() - began


def _pair(folder: Path) -> tuple[nn.Module, nn.Module]:
    from transformers import LlavaForConditionalGeneration

    student, teacher = (
        LlavaForConditionalGeneration.from_pretrained(folder / name, dtype=torch.float32)
        for name in ("student", "teacher")
    )
    return student.train(), teacher.eval().requires_grad_(False)


def _rows(folder: Path) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `labels` [B, T] padded on the right, and `pixel_values`."""
    return torch.load(folder / "rows.pt", weights_only=True)


# Plain loops


@contextmanager
def plain(folder: Path, objective: str, masked_first: bool = False) -> Iterator[Step]:
    """A loop as a tutorial has it: all logits, then the loss; or the supervised positions' logits picked first."""
    student, teacher = _pair(folder)
    rows = _rows(folder)
    inputs = {name: rows[name] for name in ("input_ids", "attention_mask", "pixel_values")}
    targets = rows["labels"][:, 1:]
    keep = targets != IGNORE

    def logits(model: nn.Module) -> Tensor:
        if not masked_first:
            return model(**inputs, use_cache=False).logits[:, :-1]
        hidden = model.model(**inputs, use_cache=False).last_hidden_state
        return model.lm_head(hidden[:, :-1][keep])

    def kl(own: Tensor, others: Tensor) -> Tensor:
        divergence = kl_div(log_softmax(own, -1), log_softmax(others, -1), reduction="none", log_target=True).sum(-1)
        return (divergence if masked_first else divergence[keep]).mean()

    def loss() -> Tensor:
        if objective == "sft":
            return student(**inputs, labels=rows["labels"], use_cache=False).loss
        with torch.no_grad():
            others = logits(teacher)
        return kl(logits(student), others)

    yield _stepping(student, loss)


def _stepping(student: nn.Module, loss: Callable[[], Tensor]) -> Step:
    adamw = torch.optim.AdamW(student.parameters(), lr=RATE, weight_decay=0.0, fused=True)

    def step() -> float:
        value = loss()
        value.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        return value.item()

    return step


# Other libraries' trainers


def _of_trainer(trainer: Any, inputs: dict[str, Any], checkpointing: bool) -> Step:
    """Return a step of a `transformers.Trainer` on given inputs, which it takes without preparing them."""
    if checkpointing:  # `train()` would do that
        trainer.model.gradient_checkpointing_enable({"use_reentrant": False})
    trainer._prepare_inputs = lambda given: dict(given)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    adamw = trainer.create_optimizer()

    def step() -> float:
        value = trainer.training_step(trainer.model, dict(inputs), None)
        nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        adamw.step()
        adamw.zero_grad()
        return value.item()

    return step


def _arguments(folder: Path, checkpointing: bool) -> dict[str, Any]:
    """Return the arguments of all trainers; checkpointing is on by default in TRL."""
    rows = len(_rows(folder)["input_ids"])
    off = {"report_to": "none", "save_strategy": "no", "bf16": False, "use_cpu": True, "weight_decay": 0.0}
    return off | {
        "output_dir": str(folder / "out"),
        "per_device_train_batch_size": rows,
        "learning_rate": RATE,
        "gradient_checkpointing": checkpointing,
    }


def _unused_rows() -> Any:
    from datasets import Dataset

    return Dataset.from_dict({"input_ids": [[1, 2]], "labels": [[1, 2]]})


@contextmanager
def trl_sft(folder: Path, checkpointing: bool = True) -> Iterator[Step]:
    from transformers import AutoProcessor
    from trl import SFTConfig, SFTTrainer

    skipped = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None}
    yield _of_trainer(
        SFTTrainer(
            model=_pair(folder)[0],
            args=SFTConfig(**_arguments(folder, checkpointing), **skipped),
            train_dataset=_unused_rows(),
            processing_class=AutoProcessor.from_pretrained(folder / "student"),
        ),
        _rows(folder),
        checkpointing,
    )


@contextmanager
def trl_gold(folder: Path, checkpointing: bool = True) -> Iterator[Step]:
    from transformers import AutoProcessor
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    student, teacher = _pair(folder)
    told = {"dataset_kwargs": {"skip_prepare_dataset": True}, "max_length": None, "lmbda": 0.0, "beta": 0.0}
    yield _of_trainer(
        GOLDTrainer(
            model=student,
            teacher_model=teacher,
            args=GOLDConfig(**_arguments(folder, checkpointing), **told, temperature=1.0, use_uld_loss=False),
            train_dataset=_unused_rows(),
            processing_class=AutoProcessor.from_pretrained(folder / "student"),
        ),
        _rows(folder),
        checkpointing,
    )


@contextmanager
def trl_distillation(folder: Path, checkpointing: bool = True) -> Iterator[Step]:
    """Its answers are the rows' own in place of generated ones: prompts padded on the left, answers on the right."""
    from transformers import AutoProcessor
    from trl import DistillationConfig, DistillationTrainer

    student, teacher = _pair(folder)
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=DistillationConfig(**_arguments(folder, checkpointing), beta=0.0, temperature=1.0),
        train_dataset=_unused_rows(),
        processing_class=AutoProcessor.from_pretrained(folder / "student"),
    )
    yield _of_trainer(trainer, _prompts_and_answers(_rows(folder)), checkpointing)


def _prompts_and_answers(rows: dict[str, Tensor]) -> dict[str, Tensor]:
    answer = rows["labels"] != IGNORE
    prompt = rows["attention_mask"].bool() & ~answer
    found = {"pixel_values": rows["pixel_values"], "num_items_in_batch": answer.sum().float()}
    for name, of, side in (("prompt", prompt, "left"), ("completion", answer, "right")):
        parts = [ids[mask] for ids, mask in zip(rows["input_ids"], of, strict=True)]
        found[f"{name}_ids"] = pad_sequence(parts, batch_first=True, padding_side=side)
        found[f"{name}_mask"] = pad_sequence([torch.ones_like(p) for p in parts], batch_first=True, padding_side=side)
    return found


@contextmanager
def swift_gkd(folder: Path, checkpointing: bool = True) -> Iterator[Step]:
    from swift import get_model_processor, get_template
    from swift.rl_core.data import GKDBatch
    from swift.rlhf_trainers.arguments import GKDConfig
    from swift.rlhf_trainers.gkd_loss import DataSource
    from swift.rlhf_trainers.gkd_trainer import GKDTrainer

    (student, processor), (teacher, _) = (
        get_model_processor(str(folder / name), model_type="llava1_5_hf", torch_dtype=torch.float32, device_map="cpu")
        for name in ("student", "teacher")
    )
    told = {"lmbda": 0.0, "beta": 0.0, "temperature": 1.0, "remove_unused_columns": False, "check_model": False}
    trainer = GKDTrainer(
        model=student,
        teacher_model=teacher.eval().requires_grad_(False),
        args=GKDConfig(**_arguments(folder, checkpointing), **told),
        template=get_template(processor),
        train_dataset=_unused_rows(),
    )
    rows = _rows(folder)
    step = _of_trainer(trainer, {}, checkpointing)
    trainer._prepare_inputs = lambda given: {
        "model_inputs": dict(rows),
        "teacher_model_inputs": dict(rows),
        "gkd_batch": GKDBatch(data_source=DataSource.DATASET),
    }
    yield step


# Ours, and loops with our losses


@contextmanager
def ours(folder: Path, terms: list[str], stage: dict[str, Any], naive: str | None = None) -> Iterator[Step]:
    """A row of scripts/bench/step.py: the package's step, or three whole forward passes with some way of computing DBiLD."""
    from scripts.bench import step as package
    from scripts.bench.explicit_pairs import dbild_of_pairs
    from scripts.bench.pairs import Size, batch, build
    from scripts.bench.three_forwards import EveryPosition, ThreeForwards
    from switchkd_cli.engine.losses.dbild import dbild

    size, cpu = Size(**json.loads((folder / "size.json").read_text())), torch.device("cpu")
    paths = build(size, cpu)
    given, asked = batch(size, paths, cpu), package.stage_of(package.Row("ours", tuple(terms), stage), size.rows)
    if naive is None:
        with package._package(paths, asked) as (step, _):
            yield lambda: step(given)["loss"]
        return
    loss = dbild_of_pairs if naive == "pairs" else dbild
    with package._naive(paths, asked, loss, EveryPosition if naive == "every position" else ThreeForwards) as (step, _):
        yield lambda: sum(value for name, value in step(given).items() if name.startswith("loss/"))


# Evaluation


@contextmanager
def answers(folder: Path, by: str, items: int, batch: int = 1) -> Iterator[Step]:
    """Answer N questions of each benchmark, by our reader or by lmms-eval's model for LLaVA; the value is a checksum of all answers."""
    from scripts.bench.evaluation import MODEL, TEN, recorded
    from switchkd_cli.engine.build import load
    from switchkd_cli.engine.evaluation.generate import GreedyModel
    from switchkd_cli.recipe.named_files import locate

    asked = recorded(TEN, items)
    if by == "lmms-eval":
        from lmms_eval.models.simple.llava_hf import LlavaHf

        theirs = LlavaHf(pretrained=str(locate(MODEL)), device="cpu", device_map="cpu", dtype="float32")
    else:
        model = load(locate(MODEL))

    def step() -> float:
        reader = theirs if by == "lmms-eval" else GreedyModel(model, batch=batch, playground=True)
        reader.task_dict = asked.task_dict
        return float(zlib.crc32(json.dumps(reader.generate_until(asked.again())).encode()))

    yield step


WAYS = {way.__name__: way for way in (plain, trl_sft, trl_gold, trl_distillation, swift_gkd, ours, answers)}

if __name__ == "__main__":
    main()
