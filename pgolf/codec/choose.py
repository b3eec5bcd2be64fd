"""What each group of tensors is stored as: the smallest allowed stream.

`auto` compares our entropy coder with brotli, zstd and LZMA; `gauss` takes it wherever it has a model, and brotli for
the rest; `pergroup` is the published ordering where that has a stream, and brotli for the rest; a compressor's name
takes that one. Whatever a codec cannot shrink is stored as it is.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from pgolf.codec.backends import Codec, compress
from pgolf.codec.layout import Array, Entry, group_bytes

Choice = Literal["auto", "gauss", "pergroup", "brotli", "zstd", "lzma"]
"""What `compress.codec` may be."""
Report = Callable[[str], None]

TRIED_WHOLE = 1 << 18
"""Bytes of a group up to which every compressor is tried; of larger ones brotli has to promise a gain on a sample."""
SAMPLE = 1 << 16
STATES = 12288
"""Most bytes of the lanes' states, which stand in the first stream of our coder."""
MOST_PER_BYTE = 64
"""Symbols of our coder per stored byte: what bounds the time that a small hostile file can take."""


class Packed(NamedTuple):
    """A stream: codec, unpacked bytes, and what is stored."""

    codec: str
    raw: int
    data: bytes


def silent(text: str) -> None:
    """A report that nobody reads."""


def squeeze(raw: bytes, codecs: Iterable[Codec]) -> Packed:
    """The shortest of these codecs' streams; of equal ones the first, and `raw` itself before all."""
    best = Packed("stored", len(raw), raw)
    for codec in codecs:
        packed = compress(codec, raw)
        if len(packed) < len(best.data):
            best = Packed(codec, len(raw), packed)
    return best


def heads_of(header: Mapping[str, Any]) -> int:
    """Query heads of the model that a header describes; 0 where it describes none."""
    model = header.get("model")
    heads = model.get("heads") if isinstance(model, dict) else 0
    return heads if type(heads) is int and heads > 0 else 0


def may_obey(header: Mapping[str, Any]) -> bool:
    """Whether codes may obey a trellis: not if the header names another method, as a submission's does whose program
    has left the search for one out.
    """
    scheme = header.get("quantize")
    return not isinstance(scheme, dict) or scheme.get("method") in (None, "trellis")


def pack_groups(
    header: Mapping[str, Any],
    groups: Mapping[str, Sequence[Entry]],
    tensors: Mapping[str, Array],
    choice: Choice,
    report: Report = silent,
) -> dict[str, Packed]:
    """The streams of all groups, in their order. Raises InputError for tensors that do not fit their entries."""
    raw = {group: group_bytes(entries, tensors) for group, entries in groups.items()}
    if choice == "pergroup":
        return {group: _published(group, groups[group], tensors, data, report) for group, data in raw.items()}
    if choice != "auto" and choice != "gauss":
        return {group: _squeeze(group, data, [choice], report) for group, data in raw.items()}
    from pgolf.codec import entropy  # heavy, and not part of a submission that does without

    coded = entropy.model_groups(groups, tensors, heads_of(header), report, may_obey(header))
    plain = {}
    for group, data in raw.items():
        estimate = coded[group].estimate if group in coded else None
        plain[group] = _squeeze(group, data, _rivals(data, estimate, choice), report)
    limit = {group: len(data) if choice == "gauss" else len(plain[group].data) for group, data in raw.items()}
    coded = {
        group: part
        for group, part in coded.items()
        if part.estimate < limit[group] and len(raw[group]) <= part.estimate * MOST_PER_BYTE
    }
    streams = {
        group: Packed("gauss", len(raw[group]), data) for group, data in entropy.encode(coded, groups, report).items()
    }
    if sum(len(part.data) - limit[group] for group, part in streams.items()) >= 0:
        return plain  # the lanes' states cost a tiny model more than the coder gains
    return {group: streams.get(group, plain[group]) for group in groups}


def _published(
    group: str, entries: Sequence[Entry], tensors: Mapping[str, Array], raw: bytes, report: Report
) -> Packed:
    from pgolf.codec import pergroup  # not part of a submission that does without

    if not pergroup.fits(group, entries):
        return _squeeze(group, raw, ["brotli"], report)
    report(f"sorting rows and compressing {group} ({'lrzip' if pergroup.has_lrzip() else 'brotli, for want of lrzip'})")
    data = pergroup.pack_group(group, entries, tensors)
    return Packed("pergroup", len(raw), data) if len(data) < len(raw) else Packed("stored", len(raw), raw)


def _squeeze(group: str, data: bytes, codecs: Iterable[Codec], report: Report) -> Packed:
    report(f"compressing {group}")
    return squeeze(data, codecs)


def _rivals(raw: bytes, estimate: int | None, choice: Choice) -> list[Codec]:
    """The compressors to try beside our coder, which needs `estimate` bytes (None: it has no model)."""
    if len(raw) <= TRIED_WHOLE:
        return list(get_args(Codec)) if choice == "auto" else ["brotli"]
    if estimate is not None and estimate < len(raw) <= estimate * MOST_PER_BYTE:  # else our coder is dropped
        part, step = SAMPLE // 4, len(raw) // 4
        sample = b"".join(raw[start : start + part] for start in range(step // 2, len(raw), step))
        if choice == "gauss" or len(compress("brotli", sample)) * len(raw) > 0.97 * estimate * len(sample):
            return []
    return ["brotli"]
