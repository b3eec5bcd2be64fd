"""Training shards whose values are their positions in the whole: the first token of a row tells where it is from."""

import numpy as np

from pgolf.data.shards import shard_name, write_shard


def shards(folder, lengths):
    paths, offset = [], 0
    for index, length in enumerate(lengths):
        paths.append(folder / shard_name("train", index))
        write_shard(paths[-1], np.arange(offset, offset + length))
        offset += length
    return paths
