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

from .attended_token_mse import attended_token_mse
from .attention_kl import attention_kl
from .attention_mse import attention_mse
from .bild import bild
from .cross_entropy import cross_entropy
from .dbild import dbild
from .dbild_forward import dbild_forward
from .dbild_student_led import dbild_student_led
from .dbild_teacher_led import dbild_teacher_led
from .decoupled_kd import decoupled_kd
from .feature_mse import feature_mse
from .forward_kl import forward_kl
from .hidden_correlation import hidden_correlation
from .jensen_shannon import jensen_shannon
from .knee import effective_k, knee_rank
from .knee_kl import knee_kl
from .reverse_kl import reverse_kl
from .self_correlation import self_correlation
from .sinkhorn import sinkhorn
from .skewed_kl import skewed_kl
from .skewed_reverse_kl import skewed_reverse_kl
from .taid import taid
from .token_mse import token_mse

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
