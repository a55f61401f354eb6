"""Peak memory: the resident set of this process (Linux), or what PyTorch allocated on CUDA."""

from pathlib import Path

import torch


def restart(device: str) -> int:
    """Forget earlier peaks; returns the bytes in use now."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    # Not getrusage: its peak is inherited from the process that started this one.
    Path("/proc/self/clear_refs").write_text("5")
    return peak(device)


def peak(device: str) -> int:
    """Return the most bytes that were in use at once since `restart`."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated()
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x]
    return int(line.split()[1]) * 1024
