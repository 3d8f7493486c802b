"""Which tokens of two unlike tokenizers are one and the same."""

from collections import Counter
from functools import cached_property

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from switchkd_cli.engine.data.byte_spans import BYTE, token_bytes


class TokenMap:
    """The student's and the teacher's tokens by the bytes that they stand for.

    `ends`: the tokens that end an answer, the student's and the teacher's, which are one and the same whatever their names.
    `shared` [2, K]: pairs of ids, in the order of the
    student's; `places`: of the student's ids and of the teacher's, [V] int64: which of the pairs it is in, -1 of one in none.
    """

    def __init__(
        self, student: PreTrainedTokenizerBase, teacher: PreTrainedTokenizerBase, ends: tuple[int | None, int | None]
    ) -> None:
        self._student, self._teacher = student, teacher
        ours, theirs = (_by_bytes(of, end) for of, end in zip((student, teacher), ends, strict=True))
        pairs = sorted((id, theirs[key]) for key, id in ours.items() if key in theirs)
        self.shared = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
        numbers, both = torch.arange(len(pairs)), zip((student, teacher), self.shared, strict=True)
        self.places = [torch.full((len(of),), -1).index_copy(0, ids, numbers) for of, ids in both]

    @cached_property
    def first_pieces(self) -> Tensor:
        """[V] int64: with which of its tokens the teacher begins the text of one of the student's, -1 of one without text."""
        first = torch.full_like(self.places[0], -1)
        texts = {id: token.decode(errors="replace") for id, token in enumerate(token_bytes(self._student)) if token}
        texts = {id: text for id, text in texts.items() if "\ufffd" not in text}  # parts of a character have none
        spelled = self._teacher(list(texts.values()), add_special_tokens=False)["input_ids"]
        for id, pieces in zip(texts, spelled, strict=True):
            first[id] = pieces[0] if pieces else -1
        first[self.shared[0]] = self.shared[1]
        return first


def _by_bytes(tokenizer: PreTrainedTokenizerBase, end: int | None) -> dict[tuple[bytes, int], int]:
    """Return ids by their bytes, and by how many ids have the same before; single bytes in brackets (<0x41>) come last."""
    strings, count = tokenizer.convert_ids_to_tokens(range(len(tokenizer))), Counter[bytes]()
    found: dict[tuple[bytes, int], int] = {}
    spelled = token_bytes(tokenizer)
    for id in sorted(range(len(spelled)), key=lambda id: bool(BYTE.fullmatch(strings[id] or ""))):
        if spelled[id] or id == end:
            found[(b"", -1) if id == end else (spelled[id], count[spelled[id]])] = id
            count[spelled[id]] += 1
    return found
