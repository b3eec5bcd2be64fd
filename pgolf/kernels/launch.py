"""How a pass whose sums over tokens are added at the end is shared out."""

import torch

PER_MULTIPROCESSOR = 8


def shares(device: torch.device, blocks: int) -> tuple[int, int]:
    """Programs for `blocks` pieces of work, and the most pieces of one: a few programs for each multiprocessor, two in
    the interpreter.
    """
    most = 2
    if device.type == "cuda":
        most = PER_MULTIPROCESSOR * torch.cuda.get_device_properties(device).multi_processor_count
    count = max(1, min(most, blocks))
    return count, -(-blocks // count)
