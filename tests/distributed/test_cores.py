"""The number of cores, and the variables that say how torch's threads wait for one another."""

import os
import subprocess
import sys

import pytest

from switchkd_cli.distributed import launch_config


@pytest.fixture
def bound(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)


@pytest.fixture
def cgroup(monkeypatch, tmp_path, bound):
    monkeypatch.setattr(launch_config, "CGROUP", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("told", "expected"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("5000 100000", 1), ("nonsense", 8)],
)
def test_a_container_has_its_share_of_the_cores(cgroup, told, expected):
    (cgroup / "cpu.max").write_text(told)
    assert launch_config.cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 8), ("300000", 3), ("1600000", 8)])
def test_so_it_has_in_the_older_cgroups(cgroup, quota, expected):
    (cgroup / "cpu").mkdir()
    (cgroup / "cpu" / "cpu.cfs_quota_us").write_text(quota)
    (cgroup / "cpu" / "cpu.cfs_period_us").write_text("100000")
    assert launch_config.cores() == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, launch_config.SHORT_SPIN),
        ({"GOMP_SPINCOUNT": "7"}, launch_config.SHORT_SPIN | {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_what_the_user_says_of_threads_is_kept(cgroup, given, expected):
    environment = dict(given)
    launch_config.set_thread_variables(environment)
    assert environment == expected


def test_in_a_container_there_are_no_more_threads_than_cores(cgroup):
    (cgroup / "cpu.max").write_text("200000 100000")
    mine, environment = {"OMP_NUM_THREADS": "3"}, {}
    launch_config.set_thread_variables(environment)
    launch_config.set_thread_variables(mine)
    assert environment["OMP_NUM_THREADS"] == "2" and mine["OMP_NUM_THREADS"] == "3"


def test_it_is_said_before_torch_reads_it():
    """The variables are set when the engine is first imported, and nothing of it imports torch before."""
    code = "import sys, os, switchkd_cli.engine; assert 'torch' not in sys.modules; print(os.environ['GOMP_SPINCOUNT'])"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP", "KMP", "OMP"))}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "1000\n"
