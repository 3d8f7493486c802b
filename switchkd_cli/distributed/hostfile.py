"""Start the processes of a training on several machines, with DeepSpeed's launcher over ssh."""

import os
import subprocess
import sys
from collections.abc import Sequence

from switchkd_cli.distributed.launch_config import LaunchConfig
from switchkd_cli.distributed.signals import Stopped
from switchkd_cli.errors import CRASH, UserError

SSH_OPTIONS = "-o BatchMode=yes -o ConnectTimeout=60 -o ServerAliveInterval=60"
"""With these, ssh asks for no password and notices a machine that is gone."""


def deepspeed_command(command: Sequence[str], config: LaunchConfig) -> list[str]:
    """The command line of DeepSpeed's launcher for `command`: `-m`, a module's name and its arguments."""
    address = []
    if config.rdzv_endpoint is not None:
        host, port = config.rdzv_endpoint.split(":")
        address = ["--master_addr", host, "--master_port", port]
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *("--num_gpus", str(config.per_node), "--hostfile", str(config.hostfile)),
        *(["--num_nodes", str(config.nodes)] if config.nodes > 1 else []),
        *address,
        *("--no_local_rank", "--module", *command[1:]),
    ]


def launch(command: Sequence[str], config: LaunchConfig) -> None:
    """Run `command` (`-m`, a module, its arguments) in every process. Raises UserError when one failed.

    The processes' own output says what went wrong; it comes from several machines and is passed on unchanged.
    """
    environment = {"PDSH_SSH_ARGS_APPEND": SSH_OPTIONS, **os.environ}
    launcher = deepspeed_command(command, config)
    with subprocess.Popen(launcher, env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except Stopped:  # if it were killed, the processes on the other machines would stay
            process.terminate()
            raise
    if code:
        raise UserError(
            f"the processes ended with exit code {code}: the first error is in the output above", code=CRASH
        )
