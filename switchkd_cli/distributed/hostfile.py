"""Starting a training's processes on several machines with DeepSpeed's launcher, which reaches them by ssh."""

import os
import subprocess
import sys
from collections.abc import Sequence

from switchkd_cli.distributed.launch_config import Spread
from switchkd_cli.distributed.signals import Stopped
from switchkd_cli.errors import CRASH, UserError

QUIET = "-o BatchMode=yes -o ConnectTimeout=60 -o ServerAliveInterval=60"
"""What ssh is told, so that it asks for no password and misses a machine that is gone."""


def command_of(command: Sequence[str], spread: Spread) -> list[str]:
    """DeepSpeed's launcher with what it has to run: a module's name and its arguments follow `-m`."""
    module, *arguments = command[1:]
    meeting = []
    if spread.meet is not None:
        host, port = spread.meet.split(":")
        meeting = ["--master_addr", host, "--master_port", port]
    each = ["--num_gpus", str(spread.each), "--hostfile", str(spread.hostfile)]
    return [
        *(sys.executable, "-m", "deepspeed.launcher.runner"),
        *each,
        *(["--num_nodes", str(spread.nodes)] if spread.nodes > 1 else []),
        *meeting,
        *("--no_local_rank", "--module", module, *arguments),
    ]


def launch(command: Sequence[str], spread: Spread) -> None:
    """Runs `command` (`-m`, a module, its arguments) in every process. Raises UserError when one failed.

    What went wrong is in the processes' own output: it comes from several machines and is handed on as it comes.
    """
    environment = {"PDSH_SSH_ARGS_APPEND": QUIET, **os.environ}
    with subprocess.Popen(command_of(command, spread), env=environment, stdin=subprocess.DEVNULL) as process:
        try:
            code = process.wait()
        except Stopped:  # killed, it would leave those on the other machines behind
            process.terminate()
            raise
    if code:
        raise UserError(
            f"the processes ended with exit code {code}: the first error is in the output above", code=CRASH
        )
