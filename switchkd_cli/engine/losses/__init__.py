"""The losses of a recipe's terms: one value for each position or each image.

``loss(teacher_logits [N, V], student_logits [N, V], *, ...) -> [N]`` compares two models at N positions,
``cross_entropy(targets [N], student_logits [N, V], *, ...) -> [N]`` a model with the labels. **The names of the positional
arguments say what the loss reads**, and only that is computed for a term:

| argument                | what                                                                         | returns |
|-------------------------|------------------------------------------------------------------------------|---------|
| ``{side}_logits``       | [N, V] at the term's positions                                               | [N]     |
| ``{side}_hidden``       | [N, D] at the term's positions, in front of the head                         | [N]     |
| ``{side}_mapped``       | the same, the student's in the teacher's width                               | [N]     |
| ``{side}_features``     | [P, F, W] of the vision tower                                                | [P]     |
| ``{side}_tokens``       | [P, M, D] behind the projector                                               | [P]     |
| ``{side}_attention``    | [P, T, M, H] of the first layer, from text to image tokens                   | [P]     |
| ``{side}_focus``        | [P, T, M], its mean over heads                                               | [P]     |
| ``{side}_attentions``   | [P, T, M, L], the same of each layer                                         | [P]     |
| ``targets``, ``rows``   | [N]: the next token of each position; the number of its example in the batch |         |
| ``progress``            | the share of the stage's steps that were taken, 0 to 1                       |         |
| ``teacher_targets``     | [M]: with ``alignment: bytes``, the teacher's next tokens                    |         |
| ``teacher_rows``        | [M]: as ``rows``, where the teacher may have other counts of positions       |         |
| ``{side}_image``        | [N] or [M] bool: which positions hold a visual token                         |         |
| ``{side}_spans``        | [N] or [M]: the span of bytes that the next token is in, -1 for none         | [C]     |
| ``first_pieces``        | [V]: with which id the teacher begins the text of each of the student's      |         |

``side`` is teacher or student: what the term's `to` and `of` name. Where the student's W, D or H differs from the
teacher's, a trained linear map has been applied to the student's. Where images have different numbers of visual tokens, a
loss over images is called image by image (P = 1; see `loss_per_image`). The keyword-only arguments are the recipe's
``parameters``. A loss that uses logits up to a knee declares its leaders with ``at_knees_of``. A loss computes in float32
at least, and gives the teacher no gradient. The objective, never the loss, averages over positions or images.
"""
