"""A stage that was interrupted and resumed: bit-equal to one that never stopped."""

import pytest
import torch

from switchkd_cli.engine.paths import Paths
from switchkd_cli.engine.training.loop import Loop
from switchkd_cli.recipe.schema import Stage
from tests.support import tiny

CE = {"name": "ce", "loss": "cross_entropy"}
ALIGN = {"name": "align", "loss": "dbild", "to": "teacher"}
VSD = {"name": "vsd", "loss": "dbild", "of": "switch", "to": "teacher"}
FEATURES = {"name": "fm", "loss": "token_mse", "to": "teacher", "on": "image"}  # unlike widths: an adapter
OURS_ALONE = {"seconds", "tokens_per_second", "data_wait", "memory_mib", "sampling"}  # the clock's and the machine's


def stage(**changes):
    settings = {"name": "distill", "data": "rows", "train": ["vision", "projector", "language"], "lr": 1e-3}
    settings |= {"batch": 4, "micro_batch": 2, "steps": 6, "objective": [CE, ALIGN, VSD]}
    return Stage.model_validate(settings | changes)


def loop(folder, stage, lines, dropout=0.0):
    student = tiny.model(seed=1)
    student.model.model.language_model.layers[0].self_attn.attention_dropout = dropout
    paths = Paths(student, tiny.model(24, seed=2), len(student.inputs.processor.tokenizer))
    data = tiny.conversations(student, folder)
    return Loop(stage, paths, data, seed=3, precision="fp32", log=lines.append), paths


def traced(lines):
    return [{key: line[key] for key in line.keys() - OURS_ALONE} for line in lines]


class Left(Exception):
    pass


@pytest.mark.parametrize(
    "settings",
    [{}, {"objective": [CE, FEATURES]}, {"dropout": 0.2}, {"workers": 2}, {"answers": {"own": 0.5, "max_tokens": 3}}],
    ids=str,
)
def test_a_stage_resumes_where_its_state_was_taken(tmp_path, settings):
    dropout = settings.pop("dropout", 0.0)
    lines, again = [], []
    whole, paths = loop(tmp_path, stage(**settings), lines, dropout)
    whole.run()

    first, _ = loop(tmp_path, stage(**settings), again, dropout)
    log = first.log

    def leave(entry):
        if first.step == 4:  # the step is taken, but was not saved
            raise Left
        log(entry)

    state = {}
    first.log = leave
    take = first.trainer.step

    def keep(group, **more):
        if first.step == 3:
            state.update(
                torch.utils._pytree.tree_map(lambda v: v.clone() if torch.is_tensor(v) else v, first.state_dict())
            )
        return take(group, **more)

    first.trainer.step = keep
    with pytest.raises(Left):
        first.run()
    del again[next(i for i, line in enumerate(again) if line.get("step") == 4) :]

    second, others = loop(tmp_path, stage(**settings), again, dropout)
    second.load_state_dict(state)
    second.run()
    assert traced(again) == traced(lines)
    assert all(torch.equal(p, q) for p, q in zip(paths.parameters(), others.parameters(), strict=True))


def test_only_what_is_trained_is_in_the_state(tmp_path):
    some, _ = loop(tmp_path, stage(train=["projector"]), [])
    some.run()
    state = some.state_dict()
    assert state["weights"].keys() == state["moments"].keys()
    assert state["weights"] and all(".multi_modal_projector." in name for name in state["weights"])


def test_the_state_of_another_training_is_refused(tmp_path):
    some, _ = loop(tmp_path, stage(train=["projector"]), [])
    other, _ = loop(tmp_path, stage(), [])
    with pytest.raises(ValueError, match="other parameters were trained"):
        other.load_state_dict(some.state_dict())
