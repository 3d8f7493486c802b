"""The frozen teacher's hidden states: computed example by example, and cached on disk if the stage says so."""

import hashlib
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors.torch import load, save
from torch import Tensor

from switchkd_cli.engine.batch import Batch
from switchkd_cli.errors import MACHINE, UserError

PATIENCE = 60.0  # seconds that a write waits for another process's

HiddenStates = Callable[[Batch, Tensor], Tensor]
"""From a batch and a mask [B, T] of N positions to the hidden states [N, D] there."""


class TeacherStates:
    """Hidden states of a frozen model, computed example by example without padding: independent of the rest of the batch.

    With a `file`, an example's states are written there once and reused: by this stage's next epoch, by another seed, by
    another row of a table. The key is a digest of all that the model reads of the example (tokens, turns, pixels,
    positions); the file's name identifies the model and what computed the states.
    """

    def __init__(self, file: Path | None = None) -> None:
        self.file = file
        self.found = self.computed = 0  # examples
        if file is not None:
            with self._user_error():
                file.parent.mkdir(parents=True, exist_ok=True)
                self._database = sqlite3.connect(file, timeout=PATIENCE)
                self._database.execute("create table if not exists rows (row blob primary key, states blob not null)")

    def __call__(self, batch: Batch, keep: Tensor, hidden_states: HiddenStates) -> Tensor:
        """Return the hidden states [N, D] at the N positions of `keep` [B, T], in their order.

        Raises UserError (code MACHINE) if the file can't be read or written.
        """
        examples = list(batch.rows(keep))
        if self.file is None:
            self.computed += len(examples)
            return torch.cat([hidden_states(*example) for example in examples])
        keys = [_digest(*example) for example in examples]
        with self._user_error():
            marks = ", ".join("?" * len(keys))
            cached = dict(self._database.execute(f"select row, states from rows where row in ({marks})", keys))
        states, new = [], {}
        for example, key in zip(examples, keys, strict=True):
            if key in cached:
                states.append(load(cached[key])["states"].to(keep.device))
            else:
                states.append(hidden_states(*example))
                new[key] = save({"states": states[-1].cpu().contiguous()})
        self.found, self.computed = self.found + len(examples) - len(new), self.computed + len(new)
        self._write(new)
        return torch.cat(states)

    def _write(self, new: Mapping[bytes, bytes]) -> None:
        """Write all of them or none: a process that is killed meanwhile leaves the file as it was."""
        with self._user_error(), self._database:
            self._database.executemany("insert or ignore into rows values (?, ?)", new.items())

    def close(self) -> None:
        if self.file is not None:
            self._database.close()

    @contextmanager
    def _user_error(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            hint = f"rm {self.file}, or set the stage's teacher_states: by_row (the same numbers, and nothing is kept)"
            raise UserError(f"{self.file}: the teacher's states can't be cached: {error}", hint, MACHINE) from error


def _digest(row: Batch, keep: Tensor) -> bytes:
    """Return a digest of all that a model reads of an example, and of the positions of its states."""
    digest = hashlib.blake2b(digest_size=16)
    read = {"tokens": row.input_ids, "turn": row.turn, "image": row.image, "keep": keep, "position": row.position}
    for number, image in enumerate(row.images):
        read |= {f"image {number}: {name}": tensor for name, tensor in image.items()}
    for name, tensor in read.items():
        if not tensor.numel():  # an example without image has the same digest in any batch
            continue
        digest.update(repr((name, tensor.shape, tensor.dtype)).encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.digest()
