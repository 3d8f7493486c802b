"""The machine, and how busy it was before the measurements."""

import os
import platform
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from scripts.bench.results import Machine
from switchkd_cli.distributed.launch_config import cores
from switchkd_cli.runs import provenance

BUSY = 0.25  # share of the cores, on average in the last minute; an idle machine's is almost 0
TOLD = (
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
    "KMP_BLOCKTIME",
    "MKL_NUM_THREADS",
    "CUDA_VISIBLE_DEVICES",
)
PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
}
"""Dense bf16 operations per second by a part of the device's name, from the makers' data sheets; the first match counts."""


def look() -> Machine:
    """Return the machine's state; call it before any measurement."""
    load = os.getloadavg()
    gpu = torch.cuda.get_device_properties(0) if torch.cuda.is_available() else None
    return Machine(
        system=f"{platform.system()} {platform.machine()}",
        processor=_processor(),
        cores=cores(),
        threads=torch.get_num_threads(),
        memory_bytes=psutil.virtual_memory().total,
        device=gpu.name if gpu else "cpu",
        device_bytes=gpu.total_memory if gpu else None,
        environment={name: os.environ[name] for name in TOLD if name in os.environ},
        versions=provenance.versions(),
        commit=provenance.commit(),
        load=load,
        loaded=load[0] > BUSY * cores(),
    )


def free_bytes() -> int:
    """Return the free bytes of the GPU's memory, or of the machine's without a GPU."""
    return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else psutil.virtual_memory().available


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def peak_flops() -> float | None:
    """Return the GPU's nominal bf16 operations per second; None if unknown, or without a GPU."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    words = f"{name} ".replace("-", " ")
    return next((peak for known, peak in PEAKS.items() if f" {known} " in f" {words}"), None)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
