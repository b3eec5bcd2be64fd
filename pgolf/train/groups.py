"""Which parameter goes to which optimizer: one table, first match wins.

Control tensors with two dimensions (mixes, skip weights, gates) must be kept out of Muon by name.
"""

import re
from collections.abc import Collection

from torch import nn

GROUPS = (
    ("embed", re.compile(r"^tok_emb|\.embed\.weight$")),  # tables of hashed n-grams and of values too
    ("gates", re.compile(r"\.attn_gate_w$")),
    ("projections", re.compile(r"^(bigram|trigram|ve_shared)\.proj\.weight$")),
    ("scalar", re.compile(r"attn_scale|mlp_scale|resid_mix|q_gain|skip_weights|skip_gates|_lambda|smear|_gate_[wb]$")),
    ("scalar", re.compile(r"\.(factor|star_scale|star_bias)$|^(ve_layer_scales|lane_merge|loop_pos)$")),
    ("muon", re.compile(r"^blocks\.\d+\.(attn|mlp)\.[\w.]+\.weight$|^mtp_heads\.")),
)


def group_of(name: str, also: Collection[str] = ()) -> str:
    """`embed`, `scalar` or `muon`; a parameter that no row covers is our mistake.

    `also` (`train.muon.also`) sends `gates` or `projections` to Muon instead of the scalars.
    """
    for group, pattern in GROUPS:
        if pattern.search(name):
            if group in ("gates", "projections"):
                return "muon" if group in also else "scalar"
            return group
    raise AssertionError(f"no optimizer group covers {name}")


def split_parameters(model: nn.Module, also: Collection[str] = ()) -> dict[str, dict[str, nn.Parameter]]:
    """Every parameter of the model by group and name; `also` as for `group_of`."""
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name in ("embed", "scalar", "muon")}
    for name, parameter in model.named_parameters():
        groups[group_of(name, also)][name] = parameter
    return groups


def layer_of(name: str) -> int | None:
    """The physical layer that a parameter belongs to; None for those outside the blocks."""
    found = re.match(r"blocks\.(\d+)\.", name)
    return int(found[1]) if found else None
