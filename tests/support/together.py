"""Train the tiny pair in all processes that run this file; the first writes the results.

    python -m torch.distributed.run --nproc-per-node 2 tests/support/together.py FOLDER CASE ...

A case is a JSON object with the arguments of `trained`. Tests also call `trained` directly, in one process.
"""

import gc
import json
import sys
from pathlib import Path

import torch

from switchkd_cli.distributed.launch_config import exit_process
from switchkd_cli.engine.build import check_checkpoint
from switchkd_cli.engine.data.conversation import Conversations
from switchkd_cli.engine.models.layer_forwards import shard
from switchkd_cli.engine.paths import FeatureAdapter, Paths
from switchkd_cli.engine.training.checkpointing import read_state, write_state
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.engine.training.processes import ALONE, Processes, join_processes
from switchkd_cli.recipe.schema import DeepSpeed, Stage
from tests.support import tiny

CE = {"name": "ce", "loss": "cross_entropy"}
ALIGN = {"name": "align", "loss": "dbild", "to": "teacher"}
VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
TOKENS = {"name": "tokens", "loss": "token_mse", "to": "teacher"}  # unlike widths: an adapter is trained
BATCH, STEPS = 8, 3
VALIDATED = 5  # examples of a validation, one of them with an image: processes get unlike numbers of batches
BETA = 0.9  # AdamW's: its first moment after one step is (1 - BETA) of the gradient


def rows(folder: Path) -> list[dict]:
    """Return eight examples, two of them with an image, so that some process gets none; one to nine answer tokens each."""
    answers = ["hi", "a dog and a cat", "no", "three red apples on the table", "yes", "at the top", "two", "a bus"]
    images = {1: "b.png", 6: "g.png"}
    for number, name in images.items():
        tiny.picture(folder, name, number)
    return [tiny.row(str(i), images.get(i), ("What?", answer)) for i, answer in enumerate(answers)]


def untrained(*, adapted: bool = False, saved: str | None = None) -> Paths:
    """Return the pair before its first step; `adapted`: the teacher's tower is wider, its grid 3 x 3 instead of 2 x 2.

    `saved`: a folder with two other models.
    """
    if saved is not None:
        student, teacher = (check_checkpoint(f"{saved}/{who}").build() for who in ("student", "teacher"))
        return Paths(student, teacher, len(student.inputs.tokenizer))
    student, unlike = tiny.model(seed=1), {"hidden_size": 32, "patch_size": 8}
    teacher = tiny.model(24, seed=2, vision=unlike if adapted else None)
    adapter = FeatureAdapter(16, 32, sides=(2, 3)) if adapted else None
    return Paths(student, teacher, len(student.inputs.processor.tokenizer), adapter=adapter)


def data_of(paths: Paths, folder: Path) -> Conversations:
    """Return the eight examples as these paths read them."""
    data = tiny.conversations(paths.student, folder, which=rows(folder))
    return data if paths.switch_adapter is None else data.with_teacher(paths.teacher.inputs)


def stage_of(
    *,
    train: tuple[str, ...] = ("vision", "projector", "language"),
    micro: int | None = None,
    steps: int = STEPS,
    objective: list[dict] | None = None,
    recomputed: bool = False,
    validated: bool = False,
    mixed: bool = False,
    answers: dict | None = None,
    lora: dict | None = None,
    bits: int | None = None,
) -> Stage:
    """Return a stage of `steps` steps over the eight examples."""
    settings = {"name": "distill", "data": "rows", "train": train, "lr": 1e-3, "batch": BATCH}
    settings |= {"micro_batch": micro, "steps": steps, "grad_clip": None}
    settings |= {"activation_checkpointing": recomputed, "answers": answers}
    settings |= {"validation": {"data": "others", "every_steps": 1}} if validated else {}
    settings |= {"batch": 4, "mixer": {"by": "divergence", "rounds": 3, "candidates": 2}} if mixed else {}
    settings |= {"lora": lora} if lora else {}
    settings |= {"bits": bits} if bits else {}
    return Stage.model_validate(settings | {"objective": objective or [CE, ALIGN, VSD, TOKENS]})


def trained(
    folder: Path,
    processes: Processes = ALONE,
    *,
    zero: int = 0,
    launcher: str = "deepspeed",
    micro: int | None = None,
    steps: int = STEPS,
    objective: list[dict] | None = None,
    train: tuple[str, ...] = ("vision", "projector", "language"),
    precision: str = "fp32",
    offload: str = "none",
    after: Path | None = None,
    until: int = STEPS,
    spoil: bool = False,
    recomputed: bool = False,
    validated: bool = False,
    mixed: bool = False,
    adapted: bool = False,
    saved: str | None = None,
    answers: dict | None = None,
    lora: dict | None = None,
    bits: int | None = None,
    sharded: bool = False,
) -> tuple[list[dict], dict, Loop]:
    """Train up to step `until`; return the logged steps, the last state, and the loop.

    It resumes from the state in `after`. With `spoil`, a term is NaN in the last process.
    """
    paths = untrained(adapted=adapted, saved=saved)
    if sharded and processes.count > 1:
        shard(paths.teacher)
    here = folder / f"rows{processes.rank}of{processes.count}"
    here.mkdir(parents=True, exist_ok=True)
    how = {"recomputed": recomputed, "validated": validated, "mixed": mixed, "answers": answers}
    how |= {"lora": lora, "bits": bits}
    stage = stage_of(train=train, micro=micro, steps=steps, objective=objective, **how)
    lines: list[dict] = []
    data = data_of(paths, here)
    others = data.part(range(VALIDATED)) if validated else None
    loop = Loop(
        stage,
        paths,
        data,
        seed=0,
        precision=precision,
        log=lines.append,
        processes=processes,
        deepspeed=DeepSpeed(zero=zero, offload=offload),
        launcher=launcher,
        held_out=others,
    )
    if after is not None:
        loop.load_state_dict(read_state(after))
    if spoil and processes.rank == processes.count - 1:
        _spoil(loop)
    loop.steps = until
    images = []
    step = loop.trainer.step
    loop.trainer.step = lambda group, **more: images.append(sum(len(b.images) for b in group)) or step(group, **more)
    error = None
    try:
        loop.run()
    except Exception as raised:  # noqa: BLE001 (a test checks it)
        error = f"{type(raised).__name__}: {raised}"
    state = loop.state_dict()
    state["pictures"] = processes.gather(images)
    state["error"] = error
    layers = [p for layer in paths.teacher.language.layers[1:] for p in layer.parameters()]
    state["teacher"] = sum(getattr(p, "_local_tensor", p).nbytes for p in layers)
    state["mixed"] = [line for line in lines if line.get("event") == "round"]
    state["sight"] = [line for line in lines if line.get("event") == "teacher"]
    loop.trainer.close()
    state["model"] = {name: p.detach().clone() for name, p in loop.trainer.trained.items()}
    return [line for line in lines if "event" not in line], state, loop


def _spoil(loop: Loop) -> None:
    """Make this process's part of one term NaN from now on."""
    objective = loop.trainer.loss

    class Spoiled(type(objective)):
        def __call__(self, *arguments):
            total, parts = super().__call__(*arguments)
            return total, {**parts, "align": parts["align"] * torch.nan}

    objective.__class__ = Spoiled


def gradients(state: dict) -> dict[str, torch.Tensor]:
    """Return the first step's gradients, by parameter."""
    return {name: moments["exp_avg"] / (1 - BETA) for name, moments in state["moments"].items()}


def main() -> None:
    folder, *cases = sys.argv[1:]
    processes = join_processes()
    gc.freeze()  # what is imported; garbage is collected after each case
    for number, case in enumerate(cases):
        arguments = json.loads(case)
        place = Path(folder) / f"case{number}"
        if "after" in arguments:
            arguments["after"] = Path(arguments["after"])
        lines, state, _ = trained(place, processes, **arguments)
        if processes.first:
            target = place / "state"
            target.mkdir(parents=True)
            write_state(state, target)
            (place / "lines.json").write_text(json.dumps(lines))


if __name__ == "__main__":
    main()
    exit_process(0)  # as a training's processes do
