"""The command `pgolf prequant`; what it needs is imported when it runs."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pgolf import paths
from pgolf.console import console, progress


def prequant(
    epochs: Annotated[int, typer.Option(help="Passes over the validation tokens.")] = 21,
    lr: Annotated[float, typer.Option(help="Rate of the first epoch.")] = 5e-4,
    freeze_blocks: Annotated[int, typer.Option(help="First blocks that stay as they are.")] = 2,
    seconds: Annotated[float, typer.Option(help="Budget of the guard.")] = 600.0,
    params: Annotated[Path, typer.Option(help="Parameter file, for the windows; `train.adopt` is set.")] = paths.PARAMS,
) -> None:
    """Train the checkpoint on the validation tokens (pre-quantization TTT): NOT VALID FOR RECORDS."""
    from pgolf import artifacts
    from pgolf.budget import Clock
    from pgolf.checkpoint_file import load_checkpoint
    from pgolf.config import to_dict
    from pgolf.data.tokens import open_tokens
    from pgolf.device import pick_device
    from pgolf.evaluate.config import EvaluateConfig
    from pgolf.lab.prequant import PrequantConfig, prequant_ttt
    from pgolf.params import section
    from pgolf.presets import apply_preset

    config = PrequantConfig(epochs=epochs, lr=lr, freeze_blocks=freeze_blocks, seconds=seconds)
    tokens, checkpoint = open_tokens(paths.TOKENS, paths.TOKENIZER), load_checkpoint(paths.MODEL)
    tokens.check_model(paths.MODEL, checkpoint.vocab_size, checkpoint.tokenizer)
    model, clock = checkpoint.build(*pick_device()), Clock()
    console.print("not valid for records: the validation tokens are trained on", markup=False)
    with progress("prequant") as show, clock.phase("prequant"):
        windows = section(params, "evaluate", EvaluateConfig)
        for epoch, loss in prequant_ttt(model, tokens.val, config, windows, lambda: clock.seconds("prequant")):
            show(f"epoch {epoch} of {epochs}, {loss:.5f} nats, {clock.seconds('prequant'):.0f} s")
    target = paths.ADOPTED / "prequant.safetensors"
    resolved: dict[str, Any] = {"model": to_dict(checkpoint.config)}
    state = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    about = {"vocab_size": checkpoint.vocab_size, "tokenizer": checkpoint.tokenizer, "trained_on_validation": True}
    artifacts.save(
        target, state, schema="pgolf.checkpoint", stage="prequant", params=resolved,
        inputs={"checkpoint": checkpoint.sha256}, extra=about,
    )  # fmt: skip
    taken = {"file": target.as_posix(), "sha256": artifacts.sha256(target)}
    apply_preset(params, also={"train": {"adopt": taken}})
    console.print(f"{target} is adopted by {params}: dvc repro (or pgolf run --from train)", markup=False)
