import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgolf.codec.layout import DTYPES, MAX_ENTRIES, Entry, by_group, group_bytes, group_tensors, raw_size
from pgolf.errors import InputError

shapes = st.lists(st.integers(0, 7), max_size=4).map(tuple)


@st.composite
def groups(draw):
    """Entries of one group and tensors of random bytes, so that every bit pattern occurs."""
    entries, tensors = [], {}
    for index in range(draw(st.integers(0, 6))):
        entry = Entry("g", f"t{index}", draw(st.sampled_from(sorted(DTYPES))), draw(shapes))
        data = draw(st.binary(min_size=entry.nbytes, max_size=entry.nbytes))
        entries.append(entry)
        tensors[entry.key] = np.frombuffer(data, DTYPES[entry.dtype]).reshape(entry.shape)
    return entries, tensors


def elements(tensor):
    """The bytes of each element, in the order in which the format walks the tensor: pure Python, one at a time."""
    ranges = [range(size) for size in tensor.shape]
    if tensor.dtype == np.int8 and tensor.ndim == 2:
        indices = ((row, column) for column in ranges[1] for row in ranges[0])
    else:
        indices = itertools.product(*ranges)
    return [tensor[index].tobytes() for index in indices]


def slow_group_bytes(entries, tensors):
    out = []
    while entries:
        width = entries[0].itemsize
        run = list(itertools.takewhile(lambda entry, width=width: entry.itemsize == width, entries))
        entries = entries[len(run) :]
        values = [value for entry in run for value in elements(tensors[entry.key])]
        out += [value[plane] for plane in range(width) for value in values]
    return bytes(out)


@settings(max_examples=200, deadline=None)
@given(groups())
def test_group_bytes_match_the_slow_twin_and_invert(group):
    entries, tensors = group
    data = group_bytes(entries, tensors)
    assert len(data) == raw_size(entries)
    assert data == slow_group_bytes(entries, tensors)
    back = group_tensors(entries, data)
    assert list(back) == [entry.key for entry in entries]
    for key, tensor in tensors.items():
        assert (back[key].dtype, back[key].shape) == (tensor.dtype, tensor.shape)
        assert back[key].tobytes() == tensor.tobytes()
        assert back[key].flags.c_contiguous
        assert back[key].flags.writeable


def test_codes_are_written_by_column_and_wide_types_by_plane():
    codes = np.array([[1, 2, 3], [4, 5, 6]], np.int8)
    assert group_bytes([Entry("g", "q", "int8", (2, 3))], {"q": codes}) == bytes([1, 4, 2, 5, 3, 6])
    scales = {"a": np.array([0x0102, 0x0304], np.uint16).view(np.float16), "b": np.array(0x0506, np.int16)}
    entries = [Entry("g", "a", "float16", (2,)), Entry("g", "b", "int16", ())]
    assert group_bytes(entries, scales) == bytes([2, 4, 6, 1, 3, 5])
    wide = {"w": np.array([0x01020304, 0x05060708], np.uint32).view(np.float32)}
    assert group_bytes([Entry("g", "w", "float32", (2,))], wide) == bytes([4, 8, 3, 7, 2, 6, 1, 5])


def test_special_bit_patterns_survive():
    patterns = np.array(
        [0x7C01, 0x7E00, 0xFE01, 0xFFFF, 0x8000, 0x0001, 0x7C00], np.uint16
    )  # NaNs, -0.0, subnormal, inf
    entries = [Entry("g", "x", "float16", (7,))]
    back = group_tensors(entries, group_bytes(entries, {"x": patterns.view(np.float16)}))
    assert back["x"].view(np.uint16).tolist() == patterns.tolist()


def test_strided_input_is_read_by_value():
    codes = np.arange(24, dtype=np.int8).reshape(4, 6)
    entries = [Entry("g", "q", "int8", (2, 3)), Entry("g", "s", "float16", (4,))]
    tensors = {"q": codes[::2, ::-2], "s": np.arange(8, dtype=np.float16)[::2]}
    back = group_tensors(entries, group_bytes(entries, tensors))
    assert back["q"].tolist() == [[5, 3, 1], [17, 15, 13]]
    assert back["s"].tolist() == [0.0, 2.0, 4.0, 6.0]


def test_result_does_not_share_memory():
    entries = [Entry("g", "a", "uint8", (3,)), Entry("g", "b", "uint8", (3,))]
    data = bytearray(b"abcdef")
    back = group_tensors(entries, data)
    data[:] = b"zzzzzz"
    back["a"][:] = 0
    assert back["b"].tobytes() == b"def"


@pytest.mark.parametrize("length", [0, 5, 7, 1000])
def test_wrong_length_is_refused(length):
    with pytest.raises(InputError, match=f"has {length} bytes; its layout needs 6"):
        group_tensors([Entry("g", "a", "int16", (3,))], bytes(length))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "`a` of the layout is missing"),
        ({"a": np.zeros(2, np.float32)}, r"`a` is float32 \(2,\); the layout says float16 \(2,\)"),
        ({"a": np.zeros((2, 1), np.float16)}, r"`a` is float16 \(2, 1\); the layout says float16 \(2,\)"),
        ({"a": np.zeros(2, ">f2")}, "`a` is >f2"),
    ],
)
def test_tensors_must_fit_their_entries(tensors, message):
    with pytest.raises(InputError, match=message):
        group_bytes([Entry("g", "a", "float16", (2,))], tensors)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (("g", "k", "bfloat16", (2,)), "`k` has type 'bfloat16'; it must be one of int8, uint8"),
        (("g", "k", ["int8"], (2,)), "has type"),
        (("g", "k", "int8", (-1,)), "whole numbers >= 0"),
        (("g", "k", "int8", (2.0,)), "whole numbers >= 0"),
        (("g", "k", "int8", (True,)), "whole numbers >= 0"),
        (("g", "k", "int8", [2]), "whole numbers >= 0"),
        (("g", None, "int8", ()), "must be text"),
        ((3, "k", "int8", ()), "must be text"),
        (("g", "k", "int8", ((1 << 30) + 1,)), "exceeds"),
        (("g", "k", "float16", (1 << 15, 1 << 15)), "exceeds"),
        (("g", "k", "int8", (0, 10**30)), "exceeds"),
        (("g", "k", "int8", (1,) * 33), "exceeds 32 dimensions"),
    ],
)
def test_impossible_entries_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        Entry(*values)


def test_largest_entries_are_accepted():
    assert Entry("g", "k", "int8", (1 << 30,)).nbytes == 1 << 30
    assert Entry("g", "k", "int8", (0, 1 << 30)).nbytes == 0
    assert Entry("g", "k", "float64", ()).nbytes == 8


def test_by_group_keeps_the_order_of_first_appearance():
    a, b, c = (Entry(group, key, "int8", (1,)) for group, key in [("y", "1"), ("x", "2"), ("y", "3")])
    assert list(by_group([a, b, c]).items()) == [("y", [a, c]), ("x", [b])]


def test_by_group_limits():
    with pytest.raises(InputError, match="`k` occurs twice"):
        by_group([Entry("a", "k", "int8", ()), Entry("b", "k", "int8", ())])
    half = 1 << 29
    with pytest.raises(InputError, match="exceeds 65536 tensors or 1 GiB"):
        by_group([Entry("a", f"k{index}", "int8", (half,)) for index in range(3)])
    endless = (Entry("a", f"k{index}", "int8", (0,)) for index in itertools.count())
    with pytest.raises(InputError, match="exceeds 65536 tensors"):
        by_group(endless)
    assert next(endless).key == f"k{MAX_ENTRIES + 1}"


@pytest.mark.parametrize("shape", [(), (0,), (5,), (3, 4), (2, 3, 4), (2, 0, 3)])
def test_sizes(shape):
    for dtype, kind in DTYPES.items():
        assert Entry("g", "k", dtype, shape).nbytes == math.prod(shape) * kind.itemsize == np.zeros(shape, kind).nbytes
