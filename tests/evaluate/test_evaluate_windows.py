"""Every target exactly once, with the context that the rule gives it."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.errors import InputError
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import windows_for
from pgolf.evaluate.windows import Windows, plan_documents, plan_windows


def slow_windows(total, seq_len, stride):
    """The rule, one window after the other: (start, end, targets scored)."""
    context = seq_len - stride
    windows, start = [], 0
    while start == 0 or start + context < total:
        end = min(start + seq_len, total)
        windows.append((start, end, range(0 if start == 0 else start + context, end)))
        start += stride
    return windows


def listed(windows):
    columns = zip(windows.start.tolist(), windows.end.tolist(), windows.first.tolist(), strict=True)
    return [(start, end, range(first, end)) for start, end, first in columns]


def counts(windows, total):
    scored = [0] * total
    for _, _, targets in listed(windows):
        for target in targets:
            scored[target] += 1
    return scored


@st.composite
def plans(draw):
    seq_len = draw(st.integers(1, 40))
    return draw(st.integers(1, 200)), seq_len, draw(st.integers(1, seq_len))


@settings(max_examples=200, deadline=None)
@given(plans())
def test_windows_follow_the_rule_and_score_every_target_once(plan):
    windows = plan_windows(*plan)
    assert listed(windows) == slow_windows(*plan)
    assert counts(windows, plan[0]) == [1] * plan[0]
    assert windows.covers_once(plan[0])


@pytest.mark.parametrize("total", [10_000, 9_984, 1, 64, 1984, 1985, 2047, 2048, 2049])
def test_published_window_scores_every_target_once(total):
    windows = plan_windows(total, 2048, 64)
    assert listed(windows) == slow_windows(total, 2048, 64)
    assert counts(windows, total) == [1] * total
    for start, end, targets in listed(windows)[1:]:
        assert targets.start - start == 1984, "less context than the rule gives"
        assert end - start <= 2048


@settings(max_examples=50, deadline=None)
@given(plans())
def test_stride_of_a_whole_window_is_plain_evaluation(plan):
    total, seq_len, _ = plan
    windows = plan_windows(total, seq_len, seq_len)
    spans = [(start, min(start + seq_len, total)) for start in range(0, total, seq_len)]
    assert listed(windows) == [(start, end, range(start, end)) for start, end in spans]


@pytest.mark.parametrize(("shortest", "extra"), [(1, 1984), (64, 1952)])
def test_faulty_rule_of_earlier_programs_is_caught(shortest, extra):
    """PR 401, PR 549: a window wherever tokens remain, each scoring its last 64 targets."""
    total, rows = 9_984 + 32, []
    for start in range(0, total, 64):
        end = min(start + 2048, total)
        if end - start >= shortest:
            rows.append((start, end, start if start == 0 else max(end - 64, start)))
    windows = Windows(*(np.array(column) for column in zip(*rows, strict=True)))
    scored = counts(windows, total)
    assert sum(scored) - total == pytest.approx(extra, abs=32)
    assert max(scored) > 30
    assert not windows.covers_once(total)


@pytest.mark.parametrize(
    "rows",
    [
        [(0, 4, 0), (0, 8, 5)],  # target 4 never
        [(0, 5, 0), (0, 8, 4)],  # target 4 twice
        [(0, 4, 0), (0, 7, 4)],  # the last one never
        [(0, 4, 1), (0, 8, 4)],  # the first one never
        [(0, 8, 0), (0, 8, 0)],
    ],
)
def test_gaps_and_repeats_are_found(rows):
    assert not Windows(*(np.array(column) for column in zip(*rows, strict=True))).covers_once(8)


@st.composite
def streams(draw):
    """Tokens 2.. with documents that may be long, empty, or begin without a BOS."""
    tokens = draw(st.lists(st.sampled_from([1, 1, 2, 3, 4, 5, 6, 7]), min_size=2, max_size=120))
    seq_len = draw(st.integers(1, 20))
    return np.array(tokens, dtype=np.uint16), seq_len, draw(st.integers(1, seq_len))


@settings(max_examples=200, deadline=None)
@given(streams())
def test_document_windows_never_see_another_document(case):
    tokens, seq_len, stride = case
    total = len(tokens) - 1
    windows = plan_documents(np.flatnonzero(tokens == 1), total, seq_len, stride)
    assert counts(windows, total) == [1] * total
    assert windows.covers_once(total)
    for start, end, _ in listed(windows):
        assert 1 not in tokens[start + 1 : end].tolist(), "an input token after the first begins a document"


@settings(max_examples=100, deadline=None)
@given(streams())
def test_each_document_gets_the_windows_it_would_get_alone(case):
    tokens, seq_len, stride = case
    total = len(tokens) - 1
    found = listed(plan_documents(np.flatnonzero(tokens == 1), total, seq_len, stride))
    edges = sorted({0, total, *(t for t in range(total) if tokens[t] == 1)})
    expected = []
    for a, b in itertools.pairwise(edges):
        for start, end, targets in slow_windows(b - a, seq_len, stride):
            expected.append((start + a, end + a, range(targets.start + a, targets.stop + a)))
    assert found == expected


def test_last_target_of_a_document_is_the_next_bos():
    tokens = np.array([1, 5, 6, 1, 7, 1], dtype=np.uint16)
    windows = plan_documents(np.flatnonzero(tokens == 1), 5, 8, 8)
    assert [[int(tokens[t + 1]) for t in targets] for _, _, targets in listed(windows)] == [[5, 6, 1], [7, 1]]


def test_configuration_chooses_between_the_stream_and_documents():
    tokens = np.array([1, 5, 6, 1, 7, 8, 9], dtype=np.uint16)
    config = EvaluateConfig(seq_len=4, stride=2, batch_tokens=8)
    flat = windows_for(tokens, config, 2)
    assert listed(flat) == slow_windows(6, 4, 2)
    alone = windows_for(tokens, EvaluateConfig(seq_len=4, stride=2, batch_tokens=8, isolate_documents=True), 2)
    assert [(start, end) for start, end, _ in listed(alone)] == [(0, 3), (3, 6)]


@pytest.mark.parametrize("tokens", [[], [1]])
def test_stream_without_a_target_is_refused(tokens):
    with pytest.raises(InputError, match="at least 2"):
        windows_for(np.array(tokens, dtype=np.uint16), EvaluateConfig(), 64)


@pytest.mark.parametrize(("change", "keys"), [
    ({"stride": 0}, "`stride` 0 .* `seq_len` 2048"),
    ({"stride": 2049}, "`stride` 2049 .* `seq_len` 2048"),
    ({"seq_len": 32}, "`stride` 64 .* `seq_len` 32"),
    ({"batch_tokens": 2047}, "`batch_tokens` 2047 .* `seq_len` 2048"),
])  # fmt: skip
def test_configuration_errors_name_both_keys(change, keys):
    with pytest.raises(InputError, match=keys):
        EvaluateConfig(**change)
