"""A student next to its teacher: its fidelity, whether it lacks eyes or a reader, and what both make of changed images.

A student can score better without becoming more like its teacher. Its eyes are its vision tower, its reader its projector
and language model. Each is exchanged for the teacher's, and the same answers are predicted:

| path    | formula          | has the teacher's |
|---------|------------------|-------------------|
| student | L_S(P_S(V_S(x))) |                   |
| reverse | L_S(P_S(V_T(x))) | eyes              |
| switch  | L_T(P_T(V_S(x))) | reader            |
| teacher | L_T(P_T(V_T(x))) | both              |
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from switchkd_cli.engine.batch import Batch, collate
from switchkd_cli.engine.data.conversation import Examples
from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.data_loader import order
from switchkd_cli.engine.training.figures import Figure, joined, measure
from switchkd_cli.engine.training.processes import ALONE

PATHS = {"teacher_grey": "blind", "student_grey": "blind_student", "student_other": "student"}  # by names in a report
WITH_AND_WITHOUT = ("student", "student_grey", "teacher", "teacher_grey")  # an image
FADED = 0.5  # the contrast of faded images
ROWS = 64  # rows compared: several thousand answer tokens
BATCH = 4  # rows of a forward pass: it needs less memory than a training step


@torch.inference_mode()
def fidelity(paths: Paths, data: Examples, *, precision: str) -> dict[str, Any]:
    """Compare student and teacher on the answer tokens of up to 64 rows, the same ones for every student of this data.

    Returns `agreement` (share of positions where both predict the same token), `kl` (mean KL(teacher || student)
    in nats), `error_consistency` of both models' right tokens, and `positions`. The positions are the same for every
    student, too.
    """
    figures = [Figure(loss="agreement"), Figure(name="kl", loss="divergence"), *_right("student", "teacher")]
    parts = [measure(figures, paths, *each) for each in compared(paths, data, precision)]
    of = joined(parts)
    positions, divergence = len(of["agreement"]), sum(part["kl"].sum().item() for part in parts)
    means = {"agreement": of["agreement"].double().mean().item(), "kl": divergence / positions}
    return {**means, "error_consistency": error_consistency(of["student"], of["teacher"]), "positions": positions}


def error_consistency(ours: Tensor, theirs: Tensor) -> float:
    """Return Cohen's kappa of which answers two models have right, [N] each of 0 and 1 (2006.16736).

    1: the same ones; 0: as many of the same as models of these accuracies share by chance, also where one has all or none.
    """
    a, b = ours.double().mean().item(), theirs.double().mean().item()
    same, chance = (ours == theirs).double().mean().item(), a * b + (1 - a) * (1 - b)
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


def compared(paths: Paths, data: Examples, precision: str) -> Iterator[tuple[Batch, Tensor]]:
    """Yield the batches of up to 64 rows with the positions that predict their answers (`Batch.read_by`), the models ready for them."""
    device = ALONE.device
    paths.to(device).eval()
    chosen = order(len(data), min(ROWS, len(data)), seed=0)
    for first in range(0, len(chosen), BATCH):
        rows = [data[i] for i in chosen[first : first + BATCH]]
        batch = collate(rows, pad_token=paths.student.inputs.tokenizer.pad_token_id).to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            yield batch, batch.predicting_in_all("answer")


@torch.inference_mode()
def eyes_or_reader(paths: Paths, data: Examples, *, precision: str) -> dict[str, Any] | None:
    """Return how often each path's first choice is the answer's next token, on the rows of `fidelity` that have images.

    `accuracy` (0..1), by name: the four paths; `teacher_grey` and `student_grey`, where every image is grey; and
    `student_other`, where it is another row's image of the same size (rows without such an image don't count there). The gap
    from student to teacher is the sum of `eyes` (reverse minus student), `reader` (switch minus student) and `interaction`
    (what both together give beyond that). `positions`: answer tokens. None where no row has an image.

    `grounding`: at the same positions, how often student and teacher agree where images are as given, `faded`, grey, or another
    row's (`agreement_given` ...); each model's `image_share`; `cka`, the mean likeness of both models' visual tokens.
    """
    given = [*_right("switch", "reverse", *WITH_AND_WITHOUT), Figure(name="agreement_given", loss="agreement")]
    given += [Figure(name=f"loss_{name}", loss="loss", of=PATHS.get(name, name)) for name in WITH_AND_WITHOUT]
    given += [Figure(name="agreement_grey", loss="agreement", of="blind_student", to="blind")]
    of_faded, of_images = [Figure(name="agreement_faded", loss="agreement")], [Figure(loss="cka", on="image")]
    of_other = [*_right("student_other"), Figure(name="agreement_other", loss="agreement")]
    each, seen = list[dict[str, Tensor]](), dict[Any, Any]()
    for batch, keep in compared(paths, data, precision):
        if not batch.images:
            continue
        keep = keep & batch.has_image[:, None]
        found = measure(given, paths, batch, keep)
        found |= measure(of_faded, paths, batch.with_blank_images(FADED), keep)
        other, replaced = batch.with_other_images(seen)
        found |= measure(of_other, paths, other, keep & replaced[:, None])
        each.append(found | measure(of_images, paths, batch, batch.predicting_in_all("image")))
    if not each:
        return None
    every = joined(each)
    mean = {name: of.double().mean().item() for name, of in every.items() if len(of)}
    accuracy = {of.name: mean[of.name] for of in (*given, *of_other) if of.loss == "right" and of.name in mean}
    grounding: dict[str, float | None] = {name: of for name, of in mean.items() if name.startswith("agreement")}
    grounding["cka"] = 1 - mean["cka"]
    for model in ("student", "teacher"):
        share = image_share(mean[f"loss_{model}"], mean[f"loss_{model}_grey"], paths.vocabulary)
        grounding |= {f"{model}_{name}": of for name, of in share.items()}
    gap, eyes, reader = (accuracy[path] - accuracy["student"] for path in ("teacher", "reverse", "switch"))
    parts = {"gap": gap, "eyes": eyes, "reader": reader, "interaction": gap - eyes - reader}
    return {"positions": len(every["student"]), "accuracy": accuracy, "grounding": grounding, **parts}


def image_share(loss: float, grey: float, tokens: float) -> dict[str, float | None]:
    """Return what a model knows of answers, in nats per token, and where from, by its losses with images and with grey ones.

    `parameters`: log(tokens) - grey, what it knows without the image beyond a guess among all tokens. `context`: grey - loss, what the
    image adds. `share`: of the image in the sum of both, where that is above 0.
    """
    parameters, context = math.log(tokens) - grey, grey - loss
    known = parameters + context
    return {"parameters": parameters, "context": context, "share": context / known if known > 0 else None}


def _right(*names: str) -> list[Figure]:
    """Return the figures that say where paths, named as in a report, predict the right token."""
    return [Figure(name=name, loss="right", of=PATHS.get(name, name)) for name in names]
