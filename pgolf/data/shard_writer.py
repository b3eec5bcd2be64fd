"""Writes a stream of tokens into numbered shards of a fixed length; only one array is in memory at a time."""

from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from pgolf.data.shards import HEADER_BYTES, Split, shard_header, shard_name


class ShardWriter:
    """A context manager: `append` arrays of any length; documents are cut at the end of a shard, as the challenge's.

    `files` holds path and number of tokens of each finished shard, complete after the context is left.
    """

    def __init__(self, folder: Path, split: Split, shard_tokens: int) -> None:
        """Shards go to `folder` under the names of `split`, `shard_tokens` tokens each, the last one shorter."""
        self.folder, self.split, self.shard_tokens = folder, split, shard_tokens
        self.files: list[tuple[Path, int]] = []
        self._file: BinaryIO | None = None
        self._written = 0

    @property
    def tokens(self) -> int:
        """Tokens written so far."""
        return sum(count for _, count in self.files) + self._written

    def append(self, tokens: npt.NDArray[np.uint16]) -> None:
        """Write tokens, uint16 [n]."""
        assert tokens.dtype == np.uint16
        while tokens.size:
            if self._file is None:
                self._file = (self.folder / shard_name(self.split, len(self.files))).open("wb")
                self._file.write(bytes(HEADER_BYTES))  # the count is known, and the header written, at the end
            part, tokens = np.split(tokens, [self.shard_tokens - self._written])
            self._file.write(part.astype("<u2", copy=False).tobytes())
            self._written += part.size
            if self._written == self.shard_tokens:
                self._finish()

    def _finish(self) -> None:
        """Complete the open shard."""
        if self._file is not None:
            self._file.seek(0)
            self._file.write(shard_header(self._written))
            self._file.close()
            self.files.append((Path(self._file.name), self._written))
            self._file, self._written = None, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if error is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
