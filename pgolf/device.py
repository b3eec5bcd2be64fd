"""Where the numbers are computed: the device, the dtype of activations, and a name for the metrics.

Never a parameter: the same params run on a laptop and on eight GPUs, and the hardware stands in the metrics.
"""

import ctypes
import platform

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of glibc's mallopt."""


def pick_device() -> tuple[torch.device, torch.dtype]:
    """CUDA with bfloat16 activations where there is a GPU, otherwise the CPU in float32."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = True
        return torch.device("cuda"), torch.bfloat16
    _keep_freed_memory()
    return torch.device("cpu"), torch.float32


def _keep_freed_memory() -> None:
    """Let glibc keep freed tensors instead of handing their pages back to the kernel after every operation.

    Eager training frees megabytes per operation; zeroing fresh pages took a fifth of a step on two cores.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def hardware_name(device: torch.device, world_size: int = 1) -> str:
    """For example `8x NVIDIA H100 80GB HBM3`, or `1x CPU x86_64`."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU {platform.machine()}"
    return f"{world_size}x {name}"


def synchronize(device: torch.device) -> None:
    """Wait for the device, so that a clock read afterwards is true."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Largest memory of the run so far: allocated on the GPU, or resident of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows, where this line is reached only without a GPU

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)
