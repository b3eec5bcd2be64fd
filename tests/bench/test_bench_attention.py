import pytest
import torch
from typer.testing import CliRunner

from pgolf.bench.attention import attention_timings, documents
from pgolf.cli import app


@pytest.mark.parametrize(("tokens", "longest"), [(98_304, 2048), (64, 64), (1000, 30)])
def test_documents_cover_the_row_and_keep_the_bound(tokens, longest):
    torch.manual_seed(0)
    bounds = documents(tokens, longest)
    assert bounds.dtype == torch.int32
    assert len(bounds) % 64 == 0
    assert (bounds[0], bounds[-1]) == (0, tokens)
    assert bounds.diff().min() >= 0
    assert bounds.diff().max() <= longest
    assert (bounds.diff() > 0).sum() > tokens / longest / 2


def test_a_machine_without_a_gpu_hears_what_is_present(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    done = CliRunner().invoke(app, ["bench", "attention"])
    assert done.exit_code == 0
    assert "attention: sdpa" in done.output


@pytest.mark.gpu
def test_every_back_end_present_is_timed():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    timings = attention_timings(torch.device("cuda"), 4096, 1024, repeats=3)
    assert {timing.rows for timing in timings} == {"packed", "dense"}
    assert all(0 < timing.forward < timing.both for timing in timings)
