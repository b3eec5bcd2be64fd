"""Shards of random tokens for whole runs."""

import numpy as np

from pgolf.data.shards import shard_name, write_shard


def token_shards(folder, vocab, *sizes, document=13):
    """Training shards of so many tokens each, in documents of one length."""
    rng, paths = np.random.default_rng(0), []
    for index, size in enumerate(sizes):
        tokens = rng.integers(2, vocab, size)
        tokens[::document] = 1
        paths.append(folder / shard_name("train", index))
        write_shard(paths[-1], tokens)
    return paths
