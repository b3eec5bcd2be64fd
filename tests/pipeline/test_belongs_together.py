"""Files that do not belong together are refused, by every path that could put them together."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from pgolf import paths
from pgolf.checkpoint_file import load_checkpoint
from pgolf.data.shards import read_shard, write_shard
from pgolf.data.tokens import open_tokens
from pgolf.errors import InputError
from pgolf.runtime import validation


def test_the_packed_program_refuses_a_sidecar_of_another_length(mini_run: Path, tmp_path: Path) -> None:
    tokens = Path(shutil.copytree(mini_run / paths.TOKENS, tmp_path / "tokens"))
    sidecar = tokens / "fineweb_val_bytes_000000.bin"
    write_shard(sidecar, np.asarray(read_shard(sidecar))[:-1])
    with pytest.raises(InputError, match="byte counts for"):
        validation(tokens, mini_run / paths.TOKENIZER)


def test_a_model_of_another_vocabulary_or_tokenizer_is_refused(mini_run: Path) -> None:
    tokens = open_tokens(mini_run / paths.TOKENS, mini_run / paths.TOKENIZER)
    model = load_checkpoint(mini_run / paths.MODEL)
    tokens.check_model(paths.MODEL, model.vocab_size, model.tokenizer)
    for vocab_size, tokenizer in ((model.vocab_size - 1, model.tokenizer), (model.vocab_size, "0" * 64)):
        with pytest.raises(InputError, match="another tokenizer"):
            tokens.check_model(paths.MODEL, vocab_size, tokenizer)


def test_changed_content_of_a_small_training_shard_is_seen(workspace: Path) -> None:
    path = workspace / paths.TOKENS / "fineweb_train_000000.bin"
    data = bytearray(path.read_bytes())
    data[2000:2002] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"fineweb_train_000000\.bin"):
        open_tokens(workspace / paths.TOKENS, None)
