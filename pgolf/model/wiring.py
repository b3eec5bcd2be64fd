"""Which physical layer runs when, and which skips connect them: U-Net over a list with depth recurrence.

A contiguous segment of layers is repeated (PR 1204, 1285; layers 3 to 5 three times: PR 1493). The virtual list is cut
in two halves: every entry of the first (encoder) pushes its output, every entry of the second (decoder) pops one.
    11 layers, segment 3..5 run 3 times:  [0,1,2,3,4,5,3,4] + [5,3,4,5,6,7,8,9,10]
With fewer runs than in the end (progressive recurrence, PR 1412) the list is that of fewer runs.
"""

from typing import NamedTuple

from pgolf.model.config import ModelConfig


class Wiring(NamedTuple):
    """Physical layer index of each virtual layer, encoder first."""

    encoder: tuple[int, ...]
    decoder: tuple[int, ...]

    @property
    def skips(self) -> int:
        """How many decoder positions receive a skip."""
        return min(len(self.encoder), len(self.decoder))


def wire(config: ModelConfig, runs: int) -> Wiring:
    """The virtual layers of one pass with `runs` runs of the segment; 1: recurrence off."""
    order = list(range(config.layers))
    if runs > 1:
        segment = order[config.loop_start : config.loop_end + 1]
        order[config.loop_start : config.loop_end + 1] = segment * runs
    half = len(order) // 2
    return Wiring(tuple(order[:half]), tuple(order[half:]))


def run_begun(config: ModelConfig, runs: int, place: int) -> int | None:
    """Which run of the segment, from 0, begins with the virtual layer at `place`; None: it begins none."""
    run, within = divmod(place - config.loop_start, config.loop_end - config.loop_start + 1)
    return run if config.loop_runs > 1 and within == 0 and 0 <= run < runs else None
