"""One quantization: codes by the scheme, the cheapest order, and the fit to the cap where a size is asked for."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from pgolf.codec.choose import Choice
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.quant.artifact import model_bytes
from pgolf.quant.config import QuantizeConfig
from pgolf.quant.quantize import Quantized, quantize_model


class Run(NamedTuple):
    """What came out, and by which scheme."""

    quantized: Quantized
    config: QuantizeConfig
    """As given, or with the clips and widths that fit."""
    trials: Mapping[float, int]
    """Factor on the clips -> bytes of the model, in order; empty without a fit."""


def run_quantization(
    state: Mapping[str, Tensor],
    hessians: Mapping[str, Tensor],
    model: ModelConfig,
    config: QuantizeConfig,
    tokenizer: str,
    codec: Choice,
    code_bytes: Callable[[], int],
    report: Callable[[str], None] = lambda _: None,
    device: torch.device | None = None,
) -> Run:
    """Quantize `state` on `device`; `tokenizer`, `codec` and `code_bytes` (of the program) matter only to a fit."""
    state = dict(sorted(state.items()))  # a file has them in this order, a model does not: equal results from both

    def quantize(scheme: QuantizeConfig) -> Quantized:
        sources, row_order = matrix_inputs(model), None
        if scheme.canonical:
            from pgolf.quant.canonical import canonical, row_orders

            widths = {name: tensor.size(1) for name, tensor in state.items() if tensor.ndim == 2}
            row_order = partial(row_orders, widths=widths, model=model)
        done = quantize_model(state, hessians, sources, scheme, lambda tensor: report(tensor.name), device, row_order)
        if scheme.canonical:
            done = done._replace(tensors=canonical(done.tensors, model))
        return done

    if config.fit.target_bytes is None:
        return Run(quantize(config), config, {})
    from pgolf.quant.fit import fit

    def size(done: Quantized, scheme: QuantizeConfig) -> int:
        vocab_size = len(state["tok_emb.weight"])
        return model_bytes(done.tensors, model, vocab_size, scheme, tokenizer, codec, report)

    code = code_bytes() if config.fit.code_bytes is None else config.fit.code_bytes
    fitted = fit(state, config, config.fit.target_bytes - code, quantize, size, report)
    return Run(fitted.quantized, fitted.config, dict(fitted.trials))
