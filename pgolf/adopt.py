"""Adopts published weights: a file of somebody else's takes the place of a trained or of a quantized model.

Full-precision weights become a checkpoint in `data/adopted`, which `train.adopt` in params.yaml names from then on: the
stage `train` takes it instead of training, whatever changes in the code. Codes become the artifact of `quantize`. The
file may be safetensors or a torch state dict (read without running any code of it), packed with brotli (`.br`) or zstd
(`.zst`).
"""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
import torch
import zstandard
from safetensors import SafetensorError
from torch import Tensor

from pgolf import artifacts, paths
from pgolf.config import build, to_dict
from pgolf.errors import InputError
from pgolf.model.config import ModelConfig
from pgolf.presets import FOLDER, apply_preset, expected_verdict, preset_files, sections_with, with_presets
from pgolf.quant.artifact import parameter_shapes
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.policy import Shapes
from pgolf.quant.published import adopt_full, adopt_quantized, is_quantized, unbank

REFERENCE_KEY = "pgolf_reference"
"""Metadata key under which a published file describes its tensors, as a JSON object."""
MAX_BYTES = 1 << 30
"""Most bytes that a packed file may unpack to."""


class Adoption(NamedTuple):
    """What was adopted and where it lies now."""

    target: Path
    weights: int
    scheme: QuantizeConfig | None
    """The scheme of a quantized file; None for full precision."""

    @property
    def next_command(self) -> str:
        """What to run now."""
        return "pgolf run --from compress" if self.scheme else "dvc repro (or pgolf run --from train)"


def adopt(file: Path, params: Path = paths.PARAMS, *, preset: str | None = None, force: bool = False) -> Adoption:
    """Check `file` against a model and the tokens' vocabulary, write it where it belongs, and set `train.adopt`.

    The model is that of `preset`, which is then written into `params` as well; without one, that of `params`. Raises
    InputError, and writes nothing, for wrong parameters, for a file that cannot be read or does not fit, and where the
    target exists and `force` is off.
    """
    presets = [preset] if preset else []
    model = sections_with(params, *presets).model  # a mistake anywhere ends it before anything is written
    manifest = artifacts.read_json(paths.TOKENS / "manifest.json", "tokenize")
    shapes = parameter_shapes(model, manifest["vocab_size"])
    if not file.is_file():
        raise InputError(f"{file} is missing: name a published safetensors file or torch state dict")
    data = file.read_bytes()
    tensors, kinds = read_tensors(file, unpack(file, data))
    target = paths.QUANTIZED if is_quantized(tensors) else paths.ADOPTED / f"{file.name.partition('.')[0]}.safetensors"
    if target.exists() and not force:
        raise InputError(f"{target} exists: move it away, or replace it with --force")
    resolved: dict[str, Any] = {"model": to_dict(model)}
    scheme = None
    if target == paths.QUANTIZED:
        stored, scheme = adopt_quantized(tensors, shapes, kinds)
        resolved["quantize"] = to_dict(scheme)
    else:
        stored = _full(tensors, shapes, manifest["vocab_size"])
    artifacts.save(
        target,
        stored,
        schema="pgolf.quantized" if scheme else "pgolf.checkpoint",
        stage="adopt",
        params=resolved,
        inputs={"adopted": hashlib.sha256(data).hexdigest()},
        extra={"vocab_size": manifest["vocab_size"], "tokenizer": manifest["tokenizer_sha256"]},
    )
    taken = {"file": target.as_posix(), "sha256": artifacts.sha256(target)}
    apply_preset(params, *presets, also={} if scheme else {"train": {"adopt": taken}})
    return Adoption(target, sum(torch.Size(shape).numel() for shape in shapes.values()), scheme)


def _full(tensors: Mapping[str, Tensor], shapes: Shapes, vocab_size: int) -> dict[str, Tensor]:
    """The weights; where they do not fit, the message names the presets that they would fit."""
    try:
        return adopt_full(tensors, shapes)
    except InputError as error:
        fits = fitting_presets(tensors, vocab_size)
        hint = f"\nthe shapes are those of --preset {' or --preset '.join(fits)}" if fits else ""
        raise InputError(f"{error}{hint}") from None


def fitting_presets(tensors: Mapping[str, Tensor], vocab_size: int) -> list[str]:
    """Names of the published systems whose parameters have the names and shapes of a full-precision state dict."""
    found = {name: tuple(tensor.shape) for name, tensor in unbank(tensors).items()}
    names = [name for name, path in preset_files().items() if expected_verdict(path)] if FOLDER.is_dir() else []
    models = {name: build(ModelConfig, with_presets({}, name)["model"], "model") for name in names}
    return [name for name, model in models.items() if parameter_shapes(model, vocab_size) == found]


def unpack(file: Path, data: bytes) -> bytes:
    """The content of a file packed as its name says; InputError where it is damaged or larger than `MAX_BYTES`."""
    try:
        if file.suffix == ".br":
            unpacked = _unpack_brotli(data)
        elif file.suffix == ".zst":
            with zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True) as reader:
                unpacked = reader.read(MAX_BYTES + 1)
        else:
            return data
    except (zstandard.ZstdError, EOFError) as error:
        raise InputError(f"{file} does not unpack ({error}): fetch it again") from None
    if len(unpacked) > MAX_BYTES:
        raise InputError(f"{file} unpacks to more than {MAX_BYTES:,} bytes: it holds no model of this size")
    return unpacked


def _unpack_brotli(data: bytes) -> bytes:
    try:
        import brotli
    except ImportError:
        raise InputError("a .br file needs the package brotli: pip install 'brotli>=1.2'") from None
    decoder, size = brotli.Decompressor(), 0
    pieces: list[bytes] = []
    try:
        while not decoder.is_finished() and size <= MAX_BYTES:
            pieces.append(decoder.process(data if not pieces else b"", output_buffer_limit=1 << 24))
            size += len(pieces[-1])
            if not pieces[-1] and not decoder.is_finished():
                raise EOFError("it ends too early")
    except brotli.error as error:
        raise EOFError(str(error)) from None
    return b"".join(pieces)


def read_tensors(file: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    """Tensors by key, and the description of each that the file carries, if it does; `file` is what messages name."""
    try:
        if data[:2] == b"PK":  # the zip archive of torch.save
            return _state_dict(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)), None
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        kinds = json.loads(header.get("__metadata__", {}).get(REFERENCE_KEY, "null"))
    except InputError:
        raise
    except SafetensorError as error:
        raise InputError(f"{file} is neither safetensors nor a torch state dict ({error})") from None
    except Exception as error:  # torch raises pickle's, zip's and its own
        raise InputError(f"{file} cannot be read as weights only ({str(error).splitlines()[0]})") from None
    described = isinstance(kinds, dict) and set(kinds) & {"tok_emb.weight"}
    return tensors, {name: str(kind) for name, kind in kinds.items()} if described else None


def _state_dict(value: Any) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not all(isinstance(tensor, Tensor) for tensor in value.values()):
        raise InputError("the torch file holds something else than a state dict of tensors")
    return {str(name): tensor for name, tensor in value.items()}
