"""The optimiser and the schedule of a stage: transformers' schedules by name, AdamW's settings, AdamW in 8 bits."""

import sys
from types import ModuleType

import pytest
import torch
from torch.optim import AdamW
from transformers import SchedulerType, get_scheduler

from switchkd_cli import registry
from switchkd_cli.engine.training.optimizer import check_schedules, make_optimizer, make_schedule
from switchkd_cli.errors import MACHINE, UserError
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load
from tests.support.small_recipe import write
from tests.training.test_training import stage

STEPS = 40
BY_A_FIGURE = {"reduce_lr_on_plateau", "greedy"}
PARAMETERS = {
    "cosine_with_restarts": {"num_cycles": 3},
    "polynomial": {"lr_end": 1e-5, "power": 2.0},
    "inverse_sqrt": {"timescale": 7},
    "cosine_with_min_lr": {"min_lr": 1e-4},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1, "warmup_lr_rate": 0.5},
    "warmup_stable_decay": {"num_decay_steps": 10, "decay_type": "1-sqrt"},
}


def rates(optimizer, schedule) -> list[float]:
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def adamw(**settings):
    parameter = torch.nn.Parameter(torch.zeros(2))
    parameter.grad = torch.ones(2)
    return make_optimizer([{"params": [parameter], "lr": 1e-3}], stage(**settings))


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_one_step_that_is_all_warm_up_moves_no_weight(name):
    """Candidate students are compared with a teacher before any training in this way (docs/compare.md)."""
    optimizer = adamw(weight_decay=0.1)
    (parameter,) = optimizer.param_groups[0]["params"]
    parameter.data.fill_(0.3)
    make_schedule(optimizer, stage(warmup=0.9, schedule=name), 1)
    optimizer.step()
    assert torch.equal(parameter, torch.full((2,), 0.3))


def test_the_schedules_are_transformers_except_those_that_need_a_figure():
    theirs = {kind.value for kind in SchedulerType} - BY_A_FIGURE
    assert set(registry.REGISTRIES["schedule"]) == theirs - {"constant_with_warmup"}  # here `constant` has the warm-up


@pytest.mark.parametrize("name", sorted(registry.REGISTRIES["schedule"]))
def test_a_schedule_has_the_rates_of_transformers(name):
    parameters = PARAMETERS.get(name, {})
    ours = adamw()
    own = stage(schedule=name, schedule_parameters=parameters, warmup=0.2)
    theirs = AdamW([torch.nn.Parameter(torch.zeros(2))], lr=1e-3)
    known = "constant_with_warmup" if name == "constant" else name  # a recipe's `constant` has a warm-up
    expected = get_scheduler(known, theirs, 8, STEPS, parameters)
    assert rates(ours, make_schedule(ours, own, STEPS)) == rates(theirs, expected)


def test_eps_and_betas_are_adamws_and_left_out_of_a_recipe_without_them():
    given = adamw(eps=1e-6, betas=[0.9, 0.95]).defaults
    assert (given["eps"], given["betas"]) == (1e-6, (0.9, 0.95))
    assert adamw().defaults["eps"] == AdamW([torch.zeros(1)]).defaults["eps"]
    assert not {"eps", "betas", "optimizer", "schedule_parameters"} & stage().model_dump().keys()


@pytest.mark.parametrize(
    ("name", "parameters", "problem"),
    [
        ("cosine_with_min_lr", {}, "One of min_lr or min_lr_rate"),
        ("cosine_with_min_lr", {"min_lr": 1e-4, "min_lr_rate": 0.1}, "Only one of min_lr or min_lr_rate"),
        ("polynomial", {"lr_end": 1.0}, "must be smaller than initial lr"),
        ("polynomial", {"lr_end": "hot"}, "not supported between"),
        ("warmup_stable_decay", {"num_decay_steps": 4, "decay_type": "sqrt"}, "Unknown decay type"),
        ("polynomial", {"lr_end": -1.0}, "its learning rates would be multiples of"),
    ],
)
def test_parameters_that_do_not_fit_one_another_end_the_run_before_any_stage(name, parameters, problem):
    with pytest.raises(UserError, match=problem) as told:
        check_schedules([stage(), stage(schedule=name, schedule_parameters=parameters)])
    assert told.value.problems[0].startswith(f"stages.distill.schedule_parameters: {name}: ")


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("schedule: cosin", "schedule: unknown schedule, got 'cosin' (did you mean 'cosine'?)"),
        (
            "schedule: polynomial\n    schedule_parameters: {powr: 2.0}",
            "schedule_parameters.powr: polynomial takes no such parameter, got 'powr' (did you mean 'power'?)",
        ),
        (
            "schedule: cosine_with_restarts\n    schedule_parameters: {num_cycles: two}",
            "schedule_parameters.num_cycles: must be a whole number, got 'two'",
        ),
        ("schedule: warmup_stable_decay", "schedule_parameters.num_decay_steps: missing: warmup_stable_decay needs it"),
        ("schedule_parameters: {num_warmup_steps: 3}", "schedule_parameters.num_warmup_steps: cosine takes no such"),
        ("optimizer: adam", "optimizer: must be one of adamw, adamw_8bit, got 'adam' (did you mean 'adamw'?)"),
        ("betas: [0.9]", "betas.1: missing"),
        ("betas: [0.9, 1.0]", "betas.1: must be less than 1, got 1.0"),
        ("eps: 0", "eps: must be greater than 0, got 0"),
    ],
)
def test_a_wrong_name_or_value_says_what_is_near(tmp_path, written, expected):
    with pytest.raises(UserError) as told:
        load(write(tmp_path, ("    steps: 10", f"    steps: 10\n    {written}")))
    assert [problem for problem in told.value.problems if f"stages.distill.{expected}" in problem], told.value.problems


def test_adamw_in_8_bits_is_bitsandbytes_and_can_not_be_sharded(tmp_path, monkeypatch):
    library, theirs = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    theirs.AdamW8bit = type("AdamW8bit", (AdamW,), {})
    monkeypatch.setitem(sys.modules, "bitsandbytes", library)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", theirs)
    assert type(adamw(optimizer="adamw_8bit", eps=1e-6)) is theirs.AdamW8bit
    steps = ("    steps: 10", "    steps: 10\n    optimizer: adamw_8bit")
    with pytest.raises(
        UserError, match=r"stages.distill.optimizer: can't be sharded, got 'adamw_8bit' with deepspeed.zero"
    ):
        load(write(tmp_path, steps, ("title: small", "title: small\ndeepspeed: {zero: 2}")))


def test_a_missing_bitsandbytes_is_told_before_training(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else object())
    run = load(write(tmp_path, ("    steps: 10", "    steps: 10\n    optimizer: adamw_8bit")))
    with pytest.raises(UserError, match="bitsandbytes is not installed") as told:
        preflight.check_named([run])
    assert (told.value.code, told.value.hint) == (MACHINE, "pip install bitsandbytes")
