"""`pgolf sweep cache`: the constants of `evaluate.cache`."""

from pathlib import Path
from typing import Annotated

import typer

from pgolf import paths
from pgolf.console import console, progress


def sweep_cache(
    targets: Annotated[int, typer.Option(min=1, help="Targets of the first training shard.")] = 65_536,
    params: Annotated[Path, typer.Option(help="Parameter file, for the windows and the temperature.")] = paths.PARAMS,
) -> None:
    """Find `evaluate.cache` for the artifact's windows, unadapted, on training text, at `evaluate.temperature`; nothing
    is written."""
    from dataclasses import replace

    from pgolf import artifacts
    from pgolf.data.shards import read_shard
    from pgolf.data.tokens import open_tokens
    from pgolf.device import pick_device
    from pgolf.evaluate.config import EvaluateConfig
    from pgolf.evaluate.documents import find_documents
    from pgolf.evaluate.neural_cache import States
    from pgolf.evaluate.run import at_temperature
    from pgolf.evaluate.score import BOS, on_device, score_windows, windows_for
    from pgolf.lab.cache import Document, fit_cache
    from pgolf.params import section
    from pgolf.quant.artifact import decode_model

    config = replace(section(params, "evaluate", EvaluateConfig), ttt="none", isolate_documents=True)
    tokens, (device, dtype) = open_tokens(paths.TOKENS, paths.TOKENIZER), pick_device()
    model, header = decode_model(artifacts.require(paths.ARTIFACT, "compress").read_bytes(), device, dtype)
    tokens.check_model(paths.ARTIFACT, header["vocab_size"], header["tokenizer"])
    text = read_shard(tokens.train[0])[: targets + 1]
    with progress("sweep") as show:
        stream, losses = on_device(text, device)
        found, windows = find_documents(text, BOS), windows_for(text, config, config.stride)
        states = States(model, stream, found)
        with at_temperature(model, config):
            score_windows(model, stream, windows, config.batch_tokens, losses, show.count("targets"), states.write)
        spans = [slice(a, a + n) for a, n in zip(found.start.tolist(), found.targets.tolist(), strict=True)]
        documents = [
            Document(losses[s], kept, stream[s.start + 1 : s.stop + 1])
            for s, kept in zip(spans, states.of_documents(), strict=True)
        ]
        cache, loss = fit_cache(
            documents, lambda found, loss: show(f"sharpness {found.sharpness:.1f}: {loss:.5f} nats")
        )
        gain = float(losses[:-1].double().mean()) - loss
    said = (
        f"{len(text) - 1:,} targets of training text: `evaluate.cache` {{sharpness: {cache.sharpness}, gate: "
        f"{cache.gate}, bias: {cache.bias}}} wins {gain:.6f} nats"
    )
    console.print(said, soft_wrap=True, markup=False)
