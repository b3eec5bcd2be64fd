"""The record rule's test and the bootstrap against scipy, and the published tables against their own statements."""

import math
import statistics

import numpy as np
import pytest

from pgolf.errors import InputError
from pgolf.submit.leaderboard import RECORDS, record
from pgolf.submit.significance import paired_bootstrap, shifted_welch, student_tail, summarize_sample

PR1855 = RECORDS["PR1855"]


def test_welch_agrees_with_scipy_on_a_thousand_random_cases() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    for _ in range(1000):
        margin = rng.choice([0.0, 0.005, rng.normal()])
        scales = 10 ** rng.uniform(-5, 0, 2)
        a = rng.normal(2.3, scales[0], rng.integers(2, 9)).tolist()
        b = rng.normal(2.3 + margin, scales[1], rng.integers(2, 9)).tolist()
        expected = stats.ttest_ind(np.array(b) - margin, a, equal_var=False, alternative="greater")
        found = shifted_welch(a, b, margin)
        # The shift is taken from the values there and from the mean here: 1e-16 of 2.3, over the standard error.
        rounding = 1e-14 / math.sqrt(np.var(a, ddof=1) / len(a) + np.var(b, ddof=1) / len(b))
        assert found.t == pytest.approx(expected.statistic, rel=1e-12, abs=rounding)
        assert found.df == pytest.approx(expected.df, rel=1e-9)
        assert found.p == pytest.approx(expected.pvalue, rel=1e-9, abs=rounding)


def test_the_tail_agrees_with_scipy_over_the_whole_range() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(2)
    for _ in range(1000):
        t, df = rng.standard_t(3) * 10 ** rng.uniform(-3, 2), 10 ** rng.uniform(-0.5, 2.3)
        assert student_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-13)
    for t, df in ((2.4, 4e4), (7.0, 1e5), (0.01, 1e5)):
        assert student_tail(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-10)


@pytest.mark.parametrize("t", [-1e9, -2.0, -0.3, 0.0, 1e-9, 0.3, 2.0, 1e9])
def test_the_tail_has_its_closed_forms(t: float) -> None:
    """One degree of freedom is Cauchy's, two have a root: independent of any package."""
    assert student_tail(t, 1) == pytest.approx(0.5 - math.atan(t) / math.pi, rel=1e-13, abs=1e-16)
    if abs(t) < 1e3:  # beyond it the closed form cancels
        assert student_tail(t, 2) == pytest.approx(0.5 - t / 2 / math.sqrt(2 + t * t), rel=1e-13)
    assert student_tail(t, 5) + student_tail(-t, 5) == pytest.approx(1, rel=1e-15)


def test_the_extremes_of_the_tail() -> None:
    assert (student_tail(math.inf, 3), student_tail(-math.inf, 3), student_tail(0, 7)) == (0, 1, 0.5)
    assert 0 < student_tail(1e200, 1) < 1e-199


def test_samples_are_summarized_as_the_standard_library_does() -> None:
    values = [1.05989454, 1.06124613, 1.06208695]
    found = summarize_sample(values)
    assert (found.n, found.mean) == (3, pytest.approx(statistics.mean(values), rel=1e-16))
    assert found.std == pytest.approx(statistics.stdev(values), rel=1e-12)
    assert summarize_sample([2.0]) == (1, 2.0, None)
    for bad in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(InputError, match="no sample"):
            summarize_sample(bad)


def test_what_cannot_be_tested_is_refused() -> None:
    with pytest.raises(InputError, match=r"two runs or more .* got 1 and 2"):
        shifted_welch([1.0], [1.0, 2.0], 0.0)
    with pytest.raises(InputError, match="same loss"):
        shifted_welch([1.0, 1.0], [2.0, 2.0], 0.0)
    assert shifted_welch([1.0, 1.0], [2.0, 2.1], 0.0).df == pytest.approx(1)  # one side may stand still


def test_the_null_is_the_margin_and_not_equality() -> None:
    base, better = [1.000, 1.001, 0.999], [0.995, 0.996, 0.994]
    at_margin = shifted_welch(better, base, 0.005)
    assert at_margin.t == pytest.approx(0, abs=1e-10)
    assert at_margin.p == pytest.approx(0.5)
    assert shifted_welch(better, base, 0.0).p < 0.01
    assert shifted_welch(base, better, 0.005).p > 0.99  # one-sided
    assert shifted_welch([x - 0.01 for x in better], base, 0.005).p < 0.01


def test_the_test_is_wrong_as_often_as_it_says() -> None:
    """Under the null p is nearly uniform: Welch's approximation with three seeds is conservative, never lavish."""
    rng = np.random.default_rng(3)
    pairs = rng.normal([[0.0], [0.005]], [[0.001], [0.002]], (4000, 2, 3))
    p = np.array([shifted_welch(a.tolist(), b.tolist(), 0.005).p for a, b in pairs])
    for level in (0.01, 0.05, 0.25, 0.5):
        assert (p < level).mean() <= level + 3 * math.sqrt(level / 4000), level
    assert (p < 0.5).mean() > 0.46
    assert (p < 0.05).mean() > 0.02


def test_the_last_record_reproduces_its_published_table() -> None:
    """Mean 1.06108 and artifact mean 15,901,919 hold; its "std .00090 BPB / .00198 nats" divides by n.

    The sample deviation, which a test over seeds needs, is .00111 BPB / .00242 nats. The table has no nats per seed
    but 42's; they follow from bytes and tokens.
    """
    bpb, losses = list(PR1855.bpb.values()), list(PR1855.losses().values())
    assert round(statistics.fmean(bpb), 8) == 1.06107587
    assert round(statistics.fmean(PR1855.artifact_bytes.values())) == 15_901_919
    assert PR1855.losses()[42] == pytest.approx(2.31944212, abs=1e-8)
    assert (round(statistics.pstdev(bpb), 5), round(statistics.pstdev(losses), 5)) == (0.00090, 0.00198)
    assert round(summarize_sample(bpb).std or 0, 5) == 0.00111
    assert round(summarize_sample(losses).std or 0, 5) == 0.00242


@pytest.mark.parametrize(
    ("seeds", "stated"),
    [
        ([1.06396, 1.06545, 1.06597], 1.06513),  # PR 1855 before quantization
        ([1.07254, 1.07407, 1.07478], 1.07380),  # and quantized
        ([1.05989, 1.06125, 1.06209], 1.06108),
        ([1.09723551, 1.09778516], 1.09751),  # PR 2071, two seeds run again with the right bytes; it claimed 1.0066
    ],
)
def test_means_of_published_seeds(seeds: list[float], stated: float) -> None:
    assert summarize_sample(seeds).mean == pytest.approx(stated, abs=6e-6)


def test_the_claim_of_pr_2071_follows_from_wrong_bytes() -> None:
    bits = 2.40073153 / math.log(2) * PR1855.scored_tokens
    assert round(bits / 1.00692894) == pytest.approx(164_594_398, abs=2)  # with its operators counted as text
    assert round(bits / PR1855.scored_bytes, 5) == 1.09704


def test_the_gain_that_the_last_record_states_follows_from_its_bytes() -> None:
    """Against 1.0810 BPB it states .01992 BPB and .04359 nats; PR 2071's corrected seeds lose to it."""
    nats = 0.01992 * math.log(2) * PR1855.scored_bytes / PR1855.scored_tokens
    assert nats == pytest.approx(0.04359, abs=1e-5)
    margin = 0.005 / (math.log(2) * PR1855.scored_bytes / PR1855.scored_tokens)
    assert round(margin, 5) == 0.00228
    assert shifted_welch(list(PR1855.bpb.values()), [1.09723551, 1.09778516], margin).p < 1e-4
    assert shifted_welch([1.09723551, 1.09778516], list(PR1855.bpb.values()), margin).p > 0.999


def test_an_unknown_record_is_refused() -> None:
    assert record("PR1855") is PR1855
    with pytest.raises(InputError, match="PR1855"):
        record("PR9")


def documents(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = rng.integers(1, 40, count)
    starts = np.concatenate([[0], lengths.cumsum()[:-1]])
    base = rng.gamma(2, 1.2, lengths.sum()).astype(np.float32)
    shift = np.repeat(rng.normal(0.01, 0.05, count), lengths)
    return base, (base - shift).astype(np.float32), starts


def test_the_bootstrap_is_scipys_on_a_thousand_random_cases() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(4)
    for seed in range(1000):
        base, candidate, starts = documents(rng, int(rng.integers(2, 30)))
        found = paired_bootstrap(candidate, base, starts, resamples=64, level=0.9, seed=seed)
        difference = base.astype(np.float64) - candidate
        parts = np.split(difference, starts[1:])

        def ratio(sums: np.ndarray, lengths: np.ndarray, axis: int) -> np.ndarray:
            return sums.sum(axis) / lengths.sum(axis)

        data = (np.array([part.sum() for part in parts]), np.array([float(len(part)) for part in parts]))
        expected = stats.bootstrap(
            data, ratio, paired=True, vectorized=True, n_resamples=64, confidence_level=0.9, method="percentile",
            rng=np.random.default_rng(seed),
        )  # fmt: skip
        assert found.difference == pytest.approx(difference.mean(), rel=1e-12)
        assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval), rel=1e-9, abs=1e-12)
        assert found.share == (expected.bootstrap_distribution <= 0).mean()


def test_the_bootstrap_does_not_depend_on_its_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    base, candidate, starts = documents(np.random.default_rng(5), 50)
    whole = paired_bootstrap(candidate, base, starts, resamples=100)
    monkeypatch.setattr("pgolf.submit.significance.BATCH", 7 * 50)
    assert paired_bootstrap(candidate, base, starts, resamples=100) == whole
    assert paired_bootstrap(candidate, base, starts, resamples=100, seed=1) != whole


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Documents from one distribution, true difference .01: a 90 % interval holds it in about 90 % of the draws."""
    rng, covered = np.random.default_rng(6), 0
    for seed in range(300):
        base, candidate, starts = documents(rng, 200)
        found = paired_bootstrap(candidate, base, starts, resamples=200, level=0.9, seed=seed)
        covered += found.low <= 0.01 <= found.high
    assert 0.84 < covered / 300 < 0.95


def test_different_streams_cannot_be_paired() -> None:
    with pytest.raises(InputError, match="scored different tokens"):
        paired_bootstrap(np.zeros(3), np.zeros(4), np.array([0]))
