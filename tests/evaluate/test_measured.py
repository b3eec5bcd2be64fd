"""The table of documents and the metrics, against sums written out by hand."""

import math

import numpy as np
import pytest
from document_models import settings_of, stream_of, tiny_model

from pgolf.evaluate.measured import document_table, metrics
from pgolf.evaluate.run import Evaluation, References, evaluate, references
from pgolf.evaluate.score import Score

TARGETS = (5, 9, 2)


@pytest.mark.parametrize("ttt", ["lora", "chunk", "none"])
def test_every_document_has_its_sums_and_the_time_of_its_batch(ttt):
    tokens, ticks = stream_of(*TARGETS), iter(range(1, 99))
    sizes = np.arange(len(tokens), dtype=np.uint16)
    model, config = tiny_model(), settings_of(ttt, documents=2)
    result = evaluate(model, tokens, sizes, config, now=lambda: float(next(ticks)))
    compared = references(model, tokens, sizes, config, result)
    table = document_table(tokens, sizes, result, compared)
    first, start = 0, []
    for document, targets in enumerate(TARGETS):
        mine = slice(first, first + targets)
        start.append(first)
        assert table["bytes"][document] == sum(range(first + 1, first + targets + 1))
        assert table["after"][document] == pytest.approx(result.losses[mine].sum(), rel=1e-5)
        if ttt != "none":
            assert table["before"][document] == pytest.approx(compared.unadapted_losses[mine].sum(), rel=1e-5)
        first += targets
    assert (table["document"], table["first"], table["targets"]) == ([0, 1, 2], start, [*TARGETS])
    # lora: the longest first, alone; then the other two. chunk: one chunk holds all.
    expected = {"lora": [2.0, 1.0, 2.0], "chunk": [1.0] * 3, "none": [None] * 3}
    assert table["seconds"] == expected[ttt]
    if ttt == "none":
        assert table["before"] == [None] * 3


def test_the_time_for_the_full_set_follows_from_the_rate():
    losses, score = np.full(1000, 2.0, dtype=np.float32), Score(2.0, 1.1, 1000, 3000)
    result = Evaluation(score, losses, [])
    compared = References(Score(2.2, 1.2, 1000, 3000), Score(2.1, 1.15, 1000, 3000), losses)
    found = metrics(settings_of("none"), result, compared, np.full(1001, 3), 4000, seconds=0.5, gpus=2)
    assert found["full_set_seconds"] == pytest.approx(47_851_520 / 8 / (1000 / 0.5 / 2))
    assert found["ttt_gain_bpb"] == pytest.approx(0.05)
    assert found["val_bpb_raw"] == pytest.approx(2.0 * 1000 / math.log(2) / 4000)
