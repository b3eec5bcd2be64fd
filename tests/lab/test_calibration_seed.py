"""Other calibration rows with every seed: 0 is the published order, and equal seeds draw equal rows."""

import itertools

import numpy as np
import pytest

from pgolf.data.shuffled_rows import ShuffledRows
from pgolf.errors import InputError
from pgolf.quant.calibrate_config import CalibrateConfig


def starts(path, **seed):
    loader = ShuffledRows([path], 4, 8, **seed)
    return [row[0] for batch in itertools.islice(loader, 5) for row in batch.inputs.tolist()]


def test_seeds_draw_other_rows_and_each_the_same_again(tmp_path):
    path = tmp_path / "shard.bin"
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 2000
    path.write_bytes(header.tobytes() + np.arange(2000, dtype="<u2").tobytes())
    published = starts(path)
    assert starts(path, seed=0) == published
    assert starts(path, seed=1) == starts(path, seed=1)
    drawn = {tuple(starts(path, seed=seed)) for seed in range(4)}
    assert len(drawn) == 4
    for rows in drawn:
        assert len(set(rows)) == 20  # no row twice, whatever the seed
    with pytest.raises(InputError, match="must not be negative"):
        CalibrateConfig(seed=-1)
