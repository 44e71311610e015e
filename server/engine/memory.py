"""How much memory is free."""

import ctypes
from pathlib import Path

import torch

GIB = 2**30


def free_bytes(device: torch.device) -> int:
    """Free memory of `device`; on a CPU what the kernel can still give, within the control group's
    limit.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_available_bytes(), _cgroup_bytes())


def give_back() -> None:
    """Let the system have the memory that was freed: the C library keeps it in pieces, and weights
    that come and go leave more of them each time.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _available_bytes() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return GIB


def _cgroup_bytes() -> int:
    """What the version 2 control group still allows; a container sees the host's /proc/meminfo.

    Files that were read count as used there, but the kernel gives their pages back.
    """
    folder = Path("/sys/fs/cgroup")
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        used -= int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return 2**62
    return 2**62 if limit == "max" else max(int(limit) - used, 0)
