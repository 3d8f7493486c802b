"""The losses of a recipe's terms: one file a loss, one number a row.

``loss(teacher_logits [N, V], student_logits [N, V], *, ...) -> [N]`` compares two models at N positions,
``cross_entropy(targets [N], student_logits [N, V], *, ...) -> [N]`` a model with the labels. The keyword-only
arguments are the recipe's ``parameters``. Each computes in float32 at least, and no
gradient reaches the teacher. Averaging over positions is the objective's work, never a loss's.
"""

from .bild import bild
from .cross_entropy import cross_entropy
from .dbild import dbild
from .dbild_forward import dbild_forward
from .dbild_student_led import dbild_student_led
from .dbild_teacher_led import dbild_teacher_led
from .forward_kl import forward_kl
from .jensen_shannon import jensen_shannon
from .knee import effective_k, knee_rank
from .knee_kl import knee_kl
from .reverse_kl import reverse_kl
from .skewed_kl import skewed_kl
from .skewed_reverse_kl import skewed_reverse_kl

__all__ = [
    "bild",
    "cross_entropy",
    "dbild",
    "dbild_forward",
    "dbild_student_led",
    "dbild_teacher_led",
    "effective_k",
    "forward_kl",
    "jensen_shannon",
    "knee_kl",
    "knee_rank",
    "reverse_kl",
    "skewed_kl",
    "skewed_reverse_kl",
]
