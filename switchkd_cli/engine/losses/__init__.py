"""The losses of a recipe's terms: one file a loss, one number for each position or for each picture.

``loss(teacher_logits [N, V], student_logits [N, V], *, ...) -> [N]`` compares two models at N positions,
``cross_entropy(targets [N], student_logits [N, V], *, ...) -> [N]`` a model with the labels. **The names of the
positional arguments say what is read**, and nothing else is computed for a term:

| argument                     | what                                                         | the loss returns |
|------------------------------|--------------------------------------------------------------|------------------|
| ``{side}_logits``            | [N, V] at the term's positions                               | [N]              |
| ``{side}_hidden``            | [N, D] at the term's positions, in front of the head         | [N]              |
| ``{side}_features``          | [P, F, W] of the vision tower                                | [P]              |
| ``{side}_tokens``            | [P, M, D] behind the projector                               | [P]              |
| ``{side}_attention``         | [P, T, M, H] of the first layer, from text to image tokens   | [P]              |
| ``{side}_focus``             | [P, T, M], its mean over heads                               | [P]              |
| ``targets``, ``rows``        | [N]: the tokens to be predicted; whose row of data each is   |                  |
| ``progress``                 | the share of the stage's steps that were taken, 0 to 1       |                  |

``side`` is teacher or student: what the term's `to` and `of` name. Where the student's W, D or H differs from the
teacher's, a trained linear map has been applied to the student's. The keyword-only arguments are the recipe's
``parameters``. A loss that takes as many logits as lie before a knee declares whose with ``at_knees_of``. Each computes in float32 at least, and no gradient reaches the teacher. Averaging over positions or
pictures is the objective's work, never a loss's.
"""

from switchkd_cli.engine.losses.attended_token_mse import attended_token_mse
from switchkd_cli.engine.losses.attention_kl import attention_kl
from switchkd_cli.engine.losses.attention_mse import attention_mse
from switchkd_cli.engine.losses.bild import bild
from switchkd_cli.engine.losses.cross_entropy import cross_entropy
from switchkd_cli.engine.losses.dbild import dbild
from switchkd_cli.engine.losses.dbild_forward import dbild_forward
from switchkd_cli.engine.losses.dbild_student_led import dbild_student_led
from switchkd_cli.engine.losses.dbild_teacher_led import dbild_teacher_led
from switchkd_cli.engine.losses.decoupled_kd import decoupled_kd
from switchkd_cli.engine.losses.feature_mse import feature_mse
from switchkd_cli.engine.losses.forward_kl import forward_kl
from switchkd_cli.engine.losses.hidden_correlation import hidden_correlation
from switchkd_cli.engine.losses.jensen_shannon import jensen_shannon
from switchkd_cli.engine.losses.knee_kl import knee_kl
from switchkd_cli.engine.losses.ops.knee import effective_k, knee_rank
from switchkd_cli.engine.losses.reverse_kl import reverse_kl
from switchkd_cli.engine.losses.self_correlation import self_correlation
from switchkd_cli.engine.losses.sinkhorn import sinkhorn
from switchkd_cli.engine.losses.skewed_kl import skewed_kl
from switchkd_cli.engine.losses.skewed_reverse_kl import skewed_reverse_kl
from switchkd_cli.engine.losses.taid import taid
from switchkd_cli.engine.losses.token_mse import token_mse

__all__ = [
    "attended_token_mse",
    "attention_kl",
    "attention_mse",
    "bild",
    "cross_entropy",
    "dbild",
    "dbild_forward",
    "dbild_student_led",
    "dbild_teacher_led",
    "decoupled_kd",
    "effective_k",
    "feature_mse",
    "forward_kl",
    "hidden_correlation",
    "jensen_shannon",
    "knee_kl",
    "knee_rank",
    "reverse_kl",
    "self_correlation",
    "sinkhorn",
    "skewed_kl",
    "skewed_reverse_kl",
    "taid",
    "token_mse",
]
