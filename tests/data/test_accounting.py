"""Three logged numbers against the runs whose counts are known."""

import itertools
import math
import re

import pytest

from pgolf.data.accounting import SIGNATURES, SUBSETS, examine
from pgolf.data.catalogue import CATALOGUE, Export
from pgolf.errors import InputError


def bpb(loss, tokens, count):
    return loss / math.log(2) * tokens / count


def test_pr_2071_in_its_own_numbers():
    found = examine(2.40073153, 1.00692894, 47_851_520)
    assert found.bytes == 164_594_398
    assert found.bytes - 151_074_499 == 3 * 4_506_633  # 3 bytes for each of 4.5 million operators
    assert round(found.tokens_per_byte, 4) == 0.2907
    assert found.right is False
    assert "sp8192-caseops" in found.text
    assert "byte table" in found.text
    assert round(found.corrected_bpb, 5) == 1.09704


def test_its_reruns_with_the_sidecar_are_right_and_the_run_after_it_is_not():
    rerun = examine(2.40115802, 1.09723551, 47_851_520)
    assert (rerun.bytes, rerun.right) == (151_074_500, True)  # 8 digits of BPB leave an uncertainty of 1
    assert rerun.corrected_bpb == pytest.approx(1.09723551, abs=1e-8)
    later = examine(2.37890832, 0.99777572, 47_851_520)
    assert later.right is False
    assert round(later.corrected_bpb, 4) == 1.0871


@pytest.mark.parametrize("tokens", [40_540_160, 40_540_802])
def test_sp8192_over_whole_windows_or_all_of_it(tokens):
    found = examine(2.8, bpb(2.8, tokens, 151_080_891 * tokens / 40_540_160), tokens)
    assert found.right
    assert found.tokens_per_byte == pytest.approx(0.26834, abs=1e-5)


@pytest.mark.parametrize(
    ("tokens", "count", "reason"),
    [
        (40_540_160, 40_540_160 / 0.2455, "CaseOps tokenizer"),
        (40_540_160, 176_332_748, "leading space twice"),
        (40_540_160, 151_080_891 + 1_346_100, "length of its label"),
        (40_540_160, 157_319_833, "no known count"),
        (40_540_160, 151_080_891 * 1.002, "no known count"),
        (47_851_520, 47_851_520 / 0.26834, "belongs to sp8192$"),
        (9_662_464, 32_756_252, "10,000"),
        (47_710_208, 150_638_137, "diagnostic"),
        (36_562_944, 36_562_944 / 0.26834, "incomplete"),
    ],
)
def test_wrong_counts_are_named(tokens, count, reason):
    found = examine(2.5, bpb(2.5, tokens, count), tokens)
    assert found.right is False
    assert re.search(reason, found.text), found.text


@pytest.mark.parametrize("tokens", [598_881, 683_364])
def test_an_own_corpus_is_not_judged(tokens):
    for rho in (0.3, 0.31674):
        found = examine(2.5, bpb(2.5, tokens, tokens / rho), tokens)
        assert (found.right, found.corrected_bpb) == (None, None)
        assert found.tokens_per_byte == pytest.approx(rho)


def test_the_loss_does_not_matter():
    found = [examine(loss, bpb(loss, 47_851_520, 151_074_499), 47_851_520) for loss in (0.5, 2.5, 9.0)]
    assert {(f.bytes, f.right) for f in found} == {(151_074_499, True)}


def test_no_two_signatures_are_one():
    """The tolerances do not overlap, and each published export has its own number of targets."""
    edges = sorted((s.tokens_per_byte * (1 - s.tolerance), s.tokens_per_byte * (1 + s.tolerance)) for s in SIGNATURES)
    assert all(high < low for (_, high), (low, _) in itertools.pairwise(edges))
    targets = [export.val_targets for export in CATALOGUE.values() if isinstance(export, Export)]
    assert len({*targets, *SUBSETS}) == len(targets) + len(SUBSETS)


@pytest.mark.parametrize(
    "numbers", [(0.0, 1.0, 5), (2.0, -1.0, 5), (math.nan, 1.0, 5), (2.0, math.inf, 5), (2.0, 1.0, 0)]
)
def test_numbers_that_are_no_score(numbers):
    with pytest.raises(InputError, match="are no score"):
        examine(*numbers)
