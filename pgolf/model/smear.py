"""SmearGate: a share of the previous token's embedding in each token's (PR 1667; document mask: PR 1851, 1855).

    x_t <- x_t + lambda sigmoid(w . x_t[:window]) x_(t-1)   for t >= 1 and ids_t != BOS

on the raw embedding, before any norm; the right-hand side reads unsmeared embeddings. Without the mask the first token
of a document would carry the last one of the document before it. The older operator of the same name is in
`pgolf.model.smear_vector`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BOS = 1


def smear(x: Tensor, ids: Tensor, gate: Tensor, strength: Tensor, mask: bool = True) -> Tensor:
    """x [B, T, d] of the tokens ids [B, T]; gate [1, window] is w, strength [1] is lambda."""
    now, before = x[:, 1:], x[:, :-1]
    share = strength.to(x.dtype) * torch.sigmoid(F.linear(now[..., : gate.size(1)], gate.to(x.dtype)))
    if mask:
        share = share * (ids[:, 1:, None] != BOS)
    return torch.cat([x[:, :1], torch.addcmul(now, share, before)], dim=1)
