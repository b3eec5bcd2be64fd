"""`pgolf sweep temperature`: the temperature of the lowest loss on training text."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from pgolf import paths
from pgolf.console import console, progress

GOLDEN = (math.sqrt(5) - 1) / 2


def golden_section(loss: Callable[[float], float], low: float, high: float, tolerance: float) -> float:
    """Where a function with one minimum in [low, high] has it, to `tolerance` (Kiefer 1953).

    The loss of softmax(b z) is convex in b = 1 / T, so it has one minimum in T.
    """
    inner = [high - GOLDEN * (high - low), low + GOLDEN * (high - low)]
    found = [loss(x) for x in inner]
    while high - low > tolerance:
        if found[0] <= found[1]:
            high, inner, found = inner[1], [inner[1] - GOLDEN * (inner[1] - low), inner[0]], [math.nan, found[0]]
            found[0] = loss(inner[0])
        else:
            low, inner, found = inner[0], [inner[1], inner[0] + GOLDEN * (high - inner[0])], [found[1], math.nan]
            found[1] = loss(inner[1])
    return (low + high) / 2


def sweep_temperature(
    targets: Annotated[int, typer.Option(min=1, help="Targets of the first training shard.")] = 131_072,
    params: Annotated[Path, typer.Option(help="Parameter file, for the windows.")] = paths.PARAMS,
) -> None:
    """Find `evaluate.temperature` for the artifact on training text, without a cache; nothing is written."""
    from dataclasses import replace

    import numpy as np

    from pgolf import artifacts
    from pgolf.data.shards import read_shard
    from pgolf.data.tokens import open_tokens
    from pgolf.device import pick_device
    from pgolf.evaluate.config import CacheConfig, EvaluateConfig
    from pgolf.evaluate.run import evaluate
    from pgolf.params import section
    from pgolf.quant.artifact import decode_model

    config = replace(section(params, "evaluate", EvaluateConfig), ttt="none", cache=CacheConfig())
    tokens, (device, dtype) = open_tokens(paths.TOKENS, paths.TOKENIZER), pick_device()
    model, header = decode_model(artifacts.require(paths.ARTIFACT, "compress").read_bytes(), device, dtype)
    tokens.check_model(paths.ARTIFACT, header["vocab_size"], header["tokenizer"])
    text = read_shard(tokens.train[0])[: targets + 1]
    seen = dict[float, float]()
    with progress("sweep") as show:

        def loss(temperature: float) -> float:
            score = evaluate(model, text, np.ones(len(text), int), replace(config, temperature=temperature)).score
            seen[temperature] = score.loss
            show(f"{len(seen)} temperatures, {temperature:.4f}: {score.loss:.5f} nats")
            return score.loss

        best = golden_section(loss, 0.8, 1.25, 1e-3)
        gain = loss(1.0) - loss(best)
    said = f"{len(text) - 1:,} targets of training text: `evaluate.temperature: {best:.4f}` wins {gain:.6f} nats"
    console.print(said, soft_wrap=True, markup=False)
