"""The Pareto front against its definition, and what a sweep's rows become."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgolf.errors import InputError
from pgolf.report.front import Point, pareto_front, points_of, read_points

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=12).map(
    lambda pairs: [Point(str(number), size, bpb) for number, (size, bpb) in enumerate(pairs)]
)


@given(POINTS)
def test_the_front_is_what_nothing_beats(points: list[Point]) -> None:
    def beaten(point: Point) -> bool:
        """By one that is no worse in both and better in one."""
        return any(
            (p.bytes <= point.bytes and p.bpb <= point.bpb) and (p.bytes < point.bytes or p.bpb < point.bpb)
            for p in points
        )

    front = pareto_front(points)
    assert {(p.bytes, p.bpb) for p in front} == {(p.bytes, p.bpb) for p in points if not beaten(p)}
    assert len({(p.bytes, p.bpb) for p in front}) == len(front)
    assert [p.bytes for p in front] == sorted(p.bytes for p in front)


ROWS = [
    {"name": "a", "metrics": {"bytes_model": 100, "quantized_bpb": 2.0}, "error": ""},
    {"name": "a", "metrics": {"bytes_model": 110, "quantized_bpb": 2.2}, "error": ""},
    {"name": "b", "metrics": {"bpb": 1.9}, "error": ""},
    {"name": "c", "metrics": {}, "error": "diverged"},
]


def test_seeds_are_averaged_and_rows_without_bytes_left_out(tmp_path) -> None:
    (point,) = points_of(ROWS)
    assert point == ("a", 105.0, pytest.approx(2.1))
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"rows": ROWS}))
    assert read_points(path) == [point]
    path.write_text(json.dumps({"rows": ROWS[2:]}))
    with pytest.raises(InputError, match="no rows with bytes"):
        read_points(path)
