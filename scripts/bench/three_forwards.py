"""Switch-KD written in the simplest way: three whole forward passes, each with all of its logits."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from switchkd_cli.engine.batch import IGNORE, Batch
from switchkd_cli.engine.paths import Paths
from switchkd_cli.recipe.schema import Stage

Loss = Callable[..., Tensor]  # teacher's and student's logits [N, V], a term's parameters -> [N]


def pixels(batch: Batch) -> Tensor:
    """[P, 3, H, W] of a batch with images."""
    return torch.stack([image["pixel_values"] for image in batch.images])


class ThreeForwards:
    """The package's models, loss and optimiser, without its optimisations.

    - every path gives logits at all positions, [B, T, V]; the supervised ones are picked when the loss is computed
    - the student's vision tower runs twice: in the student's own pass, and again for the switch
    - logits are compared in float32 copies, as transformers' own loss does

    The teacher is frozen and its own pass keeps no graph, as everybody would write it. `loss` is DBiLD, some way of
    computing it: with explicit pairs the global knee's ten million a position would fit nowhere.
    """

    def __init__(self, paths: Paths, stage: Stage, cast: AbstractContextManager, loss: Loss) -> None:
        self.student, self.teacher, self.loss = paths.student.model, paths.teacher.model, loss
        self.terms, self.cast, self.clip = {t.name: t for t in stage.objective}, cast, stage.grad_clip
        paths.student.requires_grad_(False)
        self.trained = [p for part in stage.train for p in paths.student.used_parameters(part).values()]
        for parameter in self.trained:
            parameter.requires_grad_(True)
        self.adamw = torch.optim.AdamW(self.trained, lr=stage.lr, weight_decay=stage.weight_decay)

    def step(self, batch: Batch) -> dict[str, float]:
        """Take one optimiser step; return the terms' unweighted values and the gradient's norm."""
        with self.cast:
            student, switch = self._student(batch), self._switch(batch)
            with torch.no_grad():
                teacher = self._own(self.teacher, batch)
            parts = self._parts(student, teacher, switch, batch)
        loss = sum(self.terms[name].weight * part for name, part in parts.items())
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, self.clip)
        self.adamw.step()
        self.adamw.zero_grad()
        return {**{f"loss/{name}": part.item() for name, part in parts.items()}, "grad_norm": norm.item()}

    def _student(self, batch: Batch) -> Tensor:
        return self._own(self.student, batch)

    def _own(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return a model's logits [B, T, V] from its own forward pass."""
        return model(
            input_ids=batch.input_ids,
            pixel_values=pixels(batch),
            attention_mask=batch.attention.long(),
            position_ids=batch.position,
            use_cache=False,
        ).logits

    def _switch(self, batch: Batch) -> Tensor:
        """Return L_T(P_T(V_S(x))), [B, T, V]."""
        config = self.student.config
        seen = self.student.model.vision_tower(pixels(batch), output_hidden_states=True)
        tokens = self.teacher.model.multi_modal_projector(seen.hidden_states[config.vision_feature_layer])
        embedded = self.teacher.get_input_embeddings()(batch.input_ids)
        embedded = embedded.masked_scatter(batch.image[..., None], tokens.to(embedded.dtype))
        hidden = self.teacher.model.language_model(
            inputs_embeds=embedded, attention_mask=batch.attention.long(), position_ids=batch.position, use_cache=False
        ).last_hidden_state
        return self.teacher.lm_head(hidden)

    def _parts(self, student: Tensor, teacher: Tensor, switch: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        """Return the three terms, each a mean over supervised positions."""
        student, teacher, switch = (logits[:, :-1].float() for logits in (student, teacher, switch))
        targets = batch.labels[:, 1:]
        keep = targets != IGNORE
        align, vsd = (self.terms[name].parameters for name in ("align", "vsd"))
        return {
            "ce": cross_entropy(student.flatten(0, 1), targets.flatten(), ignore_index=IGNORE),
            "align": self.loss(teacher[keep], student[keep], **align).mean(),
            "vsd": self.loss(teacher[keep], switch[keep], **vsd).mean(),
        }


class EveryPosition(ThreeForwards):
    """The same, as CompoDistill's published code treats its loss: computed at every position, [B, T - 1], masked afterwards."""

    def _parts(self, student: Tensor, teacher: Tensor, switch: Tensor, batch: Batch) -> Mapping[str, Tensor]:
        student, teacher, switch = (logits[:, :-1].float().flatten(0, 1) for logits in (student, teacher, switch))
        targets = batch.labels[:, 1:].flatten()
        keep = (targets != IGNORE).float()

        def mean(term: str, own: Tensor) -> Tensor:
            return (self.loss(teacher, own, **self.terms[term].parameters) * keep).sum() / keep.sum()

        ce = cross_entropy(student, targets, ignore_index=IGNORE)
        return {"ce": ce, "align": mean("align", student), "vsd": mean("vsd", switch)}
