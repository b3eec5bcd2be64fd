"""Levels that obey a trellis."""

import numpy as np

from pgolf.codec.trellis import SEGMENT, next_states


def obedient(levels, states):
    """The levels [layers, rows, columns] with parities as the code asks for, each moved by at most one."""
    levels, target = levels.copy(), next_states(states)
    for row in range(levels.shape[1]):
        if not row % SEGMENT:
            state = np.zeros(levels[:, 0].shape, np.intp)
        levels[:, row] -= ((levels[:, row] ^ state) & 1).astype(np.int8)
        state = target[state, levels[:, row] >> 1 & 1]
    return levels
