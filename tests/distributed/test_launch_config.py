"""How many processes a command starts, from options, SLURM and other launchers; and which process's error is shown."""

import signal
import sys

import pytest

from switchkd_cli.distributed import stopping
from switchkd_cli.distributed.launch_config import LaunchConfig, is_distributed, is_first
from switchkd_cli.distributed.stopping import Stopped
from switchkd_cli.errors import UserError
from switchkd_cli.planning import preflight
from switchkd_cli.recipe.load import load_rows
from switchkd_cli.scheduler import launch
from switchkd_cli.scheduler.run_options import RunOptions
from tests.support.small_recipe import write

SRUN = {
    "SLURM_JOB_ID": "1234567",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_STEP_NODELIST": "gpu[012-013]",
}


NAMES = ("gpus", "processes", "nodes", "node_rank", "rdzv_endpoint", "hostfile")


def launch_config(*values, environment, **more):
    options = RunOptions(**dict(zip(NAMES, values, strict=False)), **more)
    return options.launch_config(environment)


def test_one_process_is_this_one():
    assert launch_config(None, None, environment={}) is None
    assert launch_config(1, None, environment={}) is None


@pytest.mark.parametrize(("asked", "option"), [((4, None), "--gpus"), ((None, 4), "--processes")])
def test_several_on_this_machine(asked, option):
    found = launch_config(*asked, environment={})
    assert found == LaunchConfig(4, use_gpus=option == "--gpus")
    assert found.world_size == 4


def test_several_machines_learn_who_is_who():
    found = launch_config(8, None, 2, 1, "gpu012:29500", environment={})
    assert found == LaunchConfig(8, True, 2, 1, "gpu012:29500") and found.world_size == 16


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ((2, 2), "--gpus and --processes"),
        ((8, None, 2), "--node-rank 0, 1, ... and --rdzv-endpoint HOST:PORT"),
        ((8, None, 2, 2, "a:1"), "--node-rank: must be 0 to 1, got 2"),
        ((8, None, 2, 0, "a"), "--rdzv-endpoint: must be HOST:PORT, got 'a'"),
        ((None, None, 2, 0, "a:1"), "say how many GPUs of each"),
    ],
)
def test_options_that_don_t_go_together(asked, told):
    with pytest.raises(UserError, match=told) as refused:
        launch_config(*asked, environment={})
    assert refused.value.hint == "see docs/scale.md"


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_under_another_launcher_options_start_nothing(launcher):
    environment = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3"}
    assert launch_config(8, None, environment=environment) is None
    assert is_distributed(environment) and not is_first(environment)
    assert is_first(environment | {"RANK": "0"}) and is_first({})


def test_srun_with_a_task_a_gpu_is_a_launcher():
    environment = dict(SRUN)
    assert launch_config(None, None, environment=environment) is None
    assert environment["RANK"] == "9" and environment["WORLD_SIZE"] == "16"
    assert environment["LOCAL_RANK"] == "1" and environment["MASTER_ADDR"] == "gpu012"
    assert environment["MASTER_PORT"] == "24567"


def test_srun_with_a_task_a_machine_says_which_machine_this_is():
    environment = SRUN | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "1"}
    assert launch_config(8, None, environment=environment) == LaunchConfig(8, True, 2, 1, "gpu012:24567")
    assert "RANK" not in environment


def test_a_batch_script_of_slurm_is_one_process():
    environment = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "8", "SLURM_PROCID": "0"}
    assert launch_config(None, None, environment=environment) is None and not is_distributed(environment)


@pytest.mark.parametrize(
    ("nodes", "first"), [("gpu7", "gpu7"), ("a[3,5-6]-ib,b1", "a3-ib"), ("login1,gpu[1-2]", "login1")]
)
def test_the_first_of_slurm_s_machines(nodes, first):
    environment = SRUN | {"SLURM_STEP_NODELIST": nodes}
    launch_config(None, None, environment=environment)
    assert environment["MASTER_ADDR"] == first


def test_a_hostfile_goes_to_deepspeed_s_launcher(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("one slots=8\ntwo slots=8\n")
    found = launch_config(8, None, 2, None, "one:29501", file, environment={})
    command = launch.deepspeed_command(["-m", "switchkd_cli", "distill", "r.yaml"], found)
    assert command[1:3] == ["-m", "deepspeed.launcher.runner"]
    assert command[3:] == [
        *("--num_gpus", "8", "--hostfile", str(file), "--num_nodes", "2"),
        *("--master_addr", "one", "--master_port", "29501"),
        *("--no_local_rank", "--module", "switchkd_cli", "distill", "r.yaml"),
    ]
    with pytest.raises(UserError, match="no such file"):
        launch_config(8, None, hostfile=tmp_path / "none", environment={})


def test_a_batch_that_can_t_be_shared_out_is_reported_before_anything_starts(tmp_path):
    runs = load_rows(write(tmp_path))
    preflight.check_batches(runs, 4)
    with pytest.raises(UserError) as refused:
        preflight.check_batches(runs, 3)
    assert refused.value.problems == (
        "stages.pretrain.batch: must be a multiple of the 3 processes, got 8",
        "stages.distill.batch: must be a multiple of the 3 processes, got 8",
    )
    assert refused.value.hint == "--gpus 2, or change the batch"
    with pytest.raises(UserError) as refused:  # what fits the smallest batch may not fit the others
        preflight.check_batches(load_rows(write(tmp_path), overrides=["stages.distill.batch=12"]), 8)
    assert refused.value.hint == "--gpus 4, or change the batch"


@pytest.fixture
def reported(tmp_path, monkeypatch):
    """Report the end of four processes, one after another: reads what a launcher reads."""
    monkeypatch.setenv(stopping.REPORTS, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "4")

    def report(*errors):
        for rank, error in enumerate(errors):
            monkeypatch.setenv("RANK", str(rank))
            with pytest.raises(SystemExit) as end, monkeypatch.context() as patched, stopping.report_exit():
                patched.setattr(stopping, "exit_process", sys.exit)
                raise error
            assert end.value.code == getattr(error, "code", 1)
        return [report.error for report in stopping.read_reports(tmp_path)]

    return report


def test_the_cause_comes_before_what_follows_from_it(reported):
    lost, bug = RuntimeError("Connection closed by peer"), ZeroDivisionError("here")
    first, second, third = reported(lost, Stopped(signal.SIGTERM, "saved"), bug)
    assert first.problems[-2:] == ("ZeroDivisionError: here", "process 2 of 4 failed; the others were ended")
    assert first.problems[0].startswith("Traceback") and first.code == 1
    assert second.problems[-1].startswith("process 0 of 4") and str(third) == "saved"


def test_a_report_gives_back_what_was_raised(reported):
    raised = UserError(["no such file", "nor that one"], hint="look", code=3)
    raised.add_note("the weights are there")
    error, stopped = reported(raised, Stopped(signal.SIGTERM))
    assert isinstance(error, UserError) and (error.lines, error.code, str(error)) == (raised.lines, 3, str(raised))
    assert error.lines == ["no such file", "nor that one", "hint: look", "the weights are there"]
    assert isinstance(stopped, Stopped) and (str(stopped), stopped.code) == ("SIGTERM", 143)


@pytest.mark.parametrize(
    ("text", "follows"),
    [
        ("[enforce fail at gloo/transport/tcp/pair.cc] Connection closed by peer [127.0.0.1]:1", True),
        ("NCCL communicator was aborted", True),
        ("The size of tensor a must match", False),
    ],
)
def test_losing_contact_follows_from_another_s_end(text, follows):
    assert stopping.lost_contact(RuntimeError(text)) == follows
