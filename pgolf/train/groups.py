"""Which parameter goes to which optimizer: one table, first match wins.

Control tensors with two dimensions (mixes, skip weights, gates) must be kept out of Muon by name.
"""

import re

from torch import nn

GROUPS = (
    ("embed", re.compile(r"tok_emb")),
    ("scalar", re.compile(r"attn_scale|mlp_scale|resid_mix|q_gain|skip_weights|skip_gates|_lambda|attn_gate_w|smear")),
    ("muon", re.compile(r"blocks\.\d+\.(attn|mlp)\.\w+\.weight$")),
)


def group_of(name: str) -> str:
    """`embed`, `scalar` or `muon`; a parameter that no row covers is our mistake."""
    for group, pattern in GROUPS:
        if pattern.search(name):
            return group
    raise AssertionError(f"no optimizer group covers {name}")


def split_parameters(model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
    """Every parameter of the model by group and name."""
    groups: dict[str, dict[str, nn.Parameter]] = {name: {} for name, _ in GROUPS}
    for name, parameter in model.named_parameters():
        groups[group_of(name)][name] = parameter
    return groups
