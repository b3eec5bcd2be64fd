"""Kernels written for the training step, hidden behind the functions that they replace: `train.kernels: triton`.

    GPT.embed      rows of the table, smear, norm          `pgolf.train.fused_embed`
    GPT.surprise   logits, softcap and cross-entropy       `pgolf.kernels.softcap_loss`
    MLP.forward    up, LeakyReLU(slope)^2, down            `pgolf.kernels.leaky_mlp`
    Block.forward  a whole layer, written out              `pgolf.train.fused_block`
    GPT.skip, norm what lies around such layers            `pgolf.train.fused_stack`

What the configuration has in another form stays plain: another activation, factors in place of matrices, dropped
tokens, values with something added, hashed n-grams, smears by a vector, a larger softcap, adaptation while it scores.
Weights and names stay, and the plain functions return when training ends.
"""

import warnings
from collections.abc import Callable, Iterator
from types import MethodType
from typing import TYPE_CHECKING, Any, TypeGuard

from torch import Tensor, nn

from pgolf.errors import InputError
from pgolf.model.gpt import GPT
from pgolf.model.linear import Linear
from pgolf.model.mlp import MLP

if TYPE_CHECKING:
    from pgolf.model.visit import Visit
    from pgolf.train.config import TrainConfig


LARGEST_SOFTCAP = 43.0
"""Beyond it exp(-2 C), the least power in the kernel's sum, is no normal number of float32."""


def install(model: GPT, config: "TrainConfig") -> None:
    """Hide functions of a model behind kernels, in place, before it is compiled; only a warning on a CPU. With
    `matmul: fp8` an InputError where the GPU or the model has no such products, or training none that fit.
    """
    if model.tok_emb.weight.device.type == "cpu":
        warnings.warn("`train.kernels` is triton: its kernels need a GPU, training goes without", stacklevel=2)
        return
    try:
        import triton  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            "`train.kernels` is triton, and the package triton is not installed: pip install triton, or set it to plain"
        ) from error
    eight = config.matmul == "fp8"
    if eight:
        check_eight(model, config)
    hide(model, eight)
    from pgolf.kernels import epilogue

    if epilogue.present():
        from pgolf.train.precompile import precompile

        precompile(model, config)


def check_eight(model: GPT, config: "TrainConfig") -> None:
    """InputError where products of 8-bit floats cannot be, or would be nowhere."""
    from pgolf.kernels import epilogue
    from pgolf.train.fused_model import fused_functions

    reason = ""
    if not epilogue.present():
        reason = "this machine has no such products (they take a Hopper GPU and the package quack-kernels)"
    elif not any(fused_functions(model, True)):
        reason = "no block of this model is of the form that has such products (`pgolf.train.fused_model.fits`)"
    elif model.config.dim % 16:
        reason = f"such products take multiples of 16, not `dim` {model.config.dim}"
    elif config.micro_tokens % 16:
        reason = f"such products take multiples of 16, not `micro_tokens` {config.micro_tokens}"
    elif config.token_fraction < 1:
        reason = f"with `token_fraction` {config.token_fraction} rows have no gradient to find a scale by"
    if reason:
        raise InputError(f"`train.matmul` is fp8, but {reason}: set it to bfloat16")


def hide(model: GPT, eight: bool = False) -> None:
    """`install` without its checks."""
    from pgolf.train.fused_model import fused_functions

    for owner, name, function in _replacements(model):
        setattr(owner, name, MethodType(function, owner))
    for owner, name, fused in fused_functions(model, eight):
        setattr(owner, name, fused)


def remove(model: GPT) -> None:
    """Undo `install`."""
    for owner, name, _ in _replacements(model):
        vars(owner).pop(name, None)
    for name in ("skip", "norm"):
        vars(model).pop(name, None)
    if model.lane_form is not None:
        from pgolf.model.lanes import lane_form

        model.lane_form = lane_form(model.config)
    for block in model.blocks:
        for name in ("forward", "forward_lanes"):
            vars(block).pop(name, None)


def _replacements(model: GPT) -> Iterator[tuple[nn.Module, str, Callable[..., Any]]]:
    if model.head.softcap <= LARGEST_SOFTCAP:
        yield model, "surprise", _surprise
    if fits_embedding(model):
        yield model, "embed", _embed
    for mlp in (block.mlp for block in model.blocks):
        if fits(mlp):
            yield mlp, "forward", _feed


def fits(mlp: object) -> TypeGuard[MLP]:
    """Whether the MLP is two whole matrices around LeakyReLU(slope)^2, of a shape for tiles, without dropped tokens."""
    if type(mlp) is not MLP or type(mlp.fc) is not Linear or type(mlp.proj) is not Linear or mlp.drop is not None:
        return False
    units, width = mlp.fc.weight.shape
    return units % 64 == 0 and width % 8 == 0


def fits_embedding(model: GPT) -> bool:
    """Whether tokens are rows of one table, with what the window smear adds or nothing."""
    if model.bigram is not None or model.trigram is not None or model.smear is not None:
        return False
    if model.window_smear is None:
        return True
    from pgolf.model.smear import smear  # a submission without it ships none

    return model.window_smear is smear


def _embed(self: GPT, ids: Tensor) -> Tensor:
    from pgolf.train.fused_embed import embed

    return embed(self, ids)


_embed.written_out = True  # type: ignore[attr-defined]


def _surprise(self: GPT, hidden: Tensor, targets: Tensor, visit: "Visit | None" = None) -> Tensor:
    if visit is not None:
        return GPT.surprise(self, hidden, targets, visit)
    from pgolf.kernels.softcap_loss import softcap_losses

    return softcap_losses(hidden, self.tok_emb.weight, targets, self.head.softcap)


_surprise.written_out = True  # type: ignore[attr-defined]


def _feed(self: MLP, n: Tensor) -> Tensor:
    from pgolf.kernels.leaky_mlp import leaky_mlp

    return leaky_mlp(n, self.fc.weight, self.proj.weight, self.slope)  # type: ignore[arg-type]
