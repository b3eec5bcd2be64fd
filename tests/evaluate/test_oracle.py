"""The reference artifacts of the published PR-1855 program, scored by this project: tokenizer, byte sidecar, model,
dequantization and scoring at once. They are not part of the repository: PGOLF_ORACLE names a folder with
`val.jsonl.xz`, `fineweb_8192_bpe_caseops_v1.model` and the file that a test names.
"""

import os
from pathlib import Path

import brotli
import numpy as np
import pytest
import safetensors.torch
import torch
import zstandard

from pgolf.data import caseops
from pgolf.data.documents import read_documents
from pgolf.data.surfaces import encode_counted
from pgolf.data.tokenizer import load_tokenizer
from pgolf.device import pick_device
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import summarize, token_losses, windows_for
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import GPT
from pgolf.quant.published import unbank
from pgolf.quant.state import restore

pytestmark = pytest.mark.skipif("PGOLF_ORACLE" not in os.environ, reason="PGOLF_ORACLE names no folder")
FOLDER = Path(os.environ.get("PGOLF_ORACLE", "."))
PR_1855 = ModelConfig(
    qk_gain=5.0, attn_gate="sparse", attn_gate_scale=0.5, smear="window", parallel="lanes", parallel_from=8
)
PLAIN = EvaluateConfig(seq_len=2048, stride=2048, isolate_documents=True, batch_tokens=65_536)
FEW, MANY = 20_527, 524_288
"""Targets: whole documents for a CPU, and the whole batches that the published program scores."""


@pytest.fixture(scope="module")
def stream():
    """Tokens and bytes of the validation documents."""
    processor = load_tokenizer(FOLDER / "fineweb_8192_bpe_caseops_v1.model")
    texts = [caseops.encode(text) for text in read_documents(str(FOLDER / "val.jsonl.xz"))]
    tokens, counts = encode_counted(processor, texts)
    assert len(tokens) == 683_365
    assert counts.sum(dtype=np.int64) == 2_236_252
    return tokens, counts


def read(name):
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not there")
    if path.suffix == ".br":
        return restore(safetensors.torch.load(brotli.decompress(path.read_bytes())))
    with zstandard.open(path, "rb") as file:
        return unbank(safetensors.torch.load(file.read()))


def score(state, stream, targets, device="cpu", dtype=torch.float32):
    pick_device()  # tunes the allocator of a CPU
    batch_tokens = 4096 if device == "cpu" else PLAIN.batch_tokens
    with torch.device("meta"):
        model = GPT(PR_1855, 8192, dtype)
    model.load_state_dict(state, assign=True)
    tokens, counts = (array[: targets + 1] for array in stream)
    losses = token_losses(model.to(device), tokens, windows_for(tokens, PLAIN, PLAIN.seq_len), batch_tokens)
    return summarize(losses, counts[1:])


@pytest.mark.parametrize(
    ("name", "nats"),
    [
        ("record1855_bench200_quantized.safetensors.br", 2.597125),
        ("record1855_bench140_bf16.safetensors.zst", 2.66148),
    ],
)
def test_the_first_documents_on_a_cpu(stream, name, nats):
    assert score(read(name), stream, FEW).loss == pytest.approx(nats, abs=2e-5)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "nats", "bpb"),
    [
        ("record1855_bench200_quantized.safetensors.br", 2.53889304, 1.12112899),
        ("record1855_bench140_bf16.safetensors.zst", 2.60076895, 1.14845227),
    ],
)
def test_half_a_million_targets_on_a_gpu(stream, name, nats, bpb):
    found = score(read(name), stream, MANY, "cuda", torch.bfloat16)
    print(found)
    assert found.bytes == 1_712_905
    assert found.loss == pytest.approx(nats, abs=7e-4)
    assert found.bpb == pytest.approx(bpb, abs=3e-4)
