"""The three logits paths of Switch-KD as one module (paper Eqs. 4-6, Algorithm 1)."""

from collections.abc import Collection

import torch
from torch import Tensor, nn

from switchkd_cli.engine.batch import Batch
from switchkd_cli.engine.models.llava import Llava

PATHS = ("student", "teacher", "switch")


class Paths(nn.Module):
    """Student, teacher and switch logits of one batch.

    | path    | formula              | gradient reaches            |
    |---------|----------------------|-----------------------------|
    | student | L_S(P_S(V_S(x)))     | V_S, P_S, L_S               |
    | teacher | L_T(P_T(V_T(x)))     | nothing                     |
    | switch  | L_T(P_T(V_S(x)))     | V_S, through frozen P_T, L_T |

    Only the paths asked for are computed. Logits are cut to `vocabulary` columns, the ids that both tokenizers
    share, so that padding rows of a wider head never enter a loss.
    """

    def __init__(self, student: Llava, teacher: Llava | None, vocabulary: int) -> None:
        super().__init__()
        self.student = student
        self.teacher = teacher.requires_grad_(False).eval() if teacher is not None else None
        self.vocabulary = vocabulary

    def train(self, mode: bool = True) -> "Paths":
        """Sets the student's mode; the teacher always stays in eval mode."""
        super().train(mode)
        if self.teacher is not None:
            self.teacher.eval()
        return self

    def forward(self, batch: Batch, wanted: Collection[str], keep: Tensor) -> dict[str, Tensor]:
        """Logits of the wanted paths at the kept positions.

        `keep` is [B, T] bool with N true entries; each result is [N, vocabulary], in the order of `keep`'s rows.
        Positions are chosen before the head, so no [B, T, vocabulary] tensor exists.
        """
        seen = self.student.see(batch.pictures) if {"student", "switch"} & set(wanted) else None
        logits = {}
        if "student" in wanted:
            logits["student"] = self._read(self.student, seen, batch, keep)
        if "teacher" in wanted:
            with torch.no_grad():
                logits["teacher"] = self._read(self.teacher, self.teacher.see(batch.pictures), batch, keep)
        if "switch" in wanted:
            logits["switch"] = self._read(self.teacher, seen, batch, keep)
        return logits

    def _read(self, reader: Llava, seen: Tensor, batch: Batch, keep: Tensor) -> Tensor:
        """L(P(features)) of one model at the kept positions."""
        return reader.decode(batch, reader.project(seen), keep)[:, : self.vocabulary]
