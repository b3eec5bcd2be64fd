"""Products of a block with all that surrounds them in their epilogues.

    h <- h + z Wo'^T,             squares of a row: sum h^2, from which q = 1 / sqrt(mean(h^2) + eps)
    p = s q (h W1^T) = n W1^T     n = s q h is nowhere stored:  f = LeakyReLU(slope)(p)^2,  h <- h + f W2'^T
    backward, g of the output, df = g W2', dp = df f'(p):
        dp' = s q dp = s q df 2 sqrt(f) (1 where p > 0, -slope otherwise)       dW1 = dp'^T h,  dW2' = g^T f
        dh = c g + dp' W1 - h q^2 / d sum_k p_k dp_k,      p f'(p) = 2 f, so the sum is 2 sum_k df_k f_k

The last line is the gradient of RMSNorm, whose mean over n dn needs no dn: n . dn = n . (dp W1) = p . dp.
f carries the sign of p in its last bit (`pgolf.kernels.elements.marked`). At the head of a block h = r0 x + r1 x0:
        dx = r0 dh,  dx0 = r1 dh + later,  dr0 = sum over tokens of dh x,  dr1 = of dh x0
and where x = g x' + (1 - g) w s is a skip's, what leaves is dx' = g dx, with the sum of dx s (`pgolf.train.skips`). In
lanes g reaches x beside the mix, dx = r0 dh + c g, so that the sum of dx x is one more. What `branch` names is the
gradient of a stream that came another way.
"""

from typing import Any

from pgolf.kernels.elements import clipped, marked, maximum, of_mark, root
from pgolf.kernels.epilogue import Product, Tile
from pgolf.kernels.float8 import LARGEST, OF_HIDDEN

STEEP = 2.0 * OF_HIDDEN
"""Of f'(p) / sqrt(f), as `hidden_backward8` writes it."""


def _into_stream(acc: Any, c: Any) -> dict[str, Any]:
    h = acc + c
    return {"D": h, "squares": (h, h)}


def _into_stream8(acc: Any, c: Any) -> dict[str, Any]:
    h = acc + c
    return {"D": h, "squares": (h, h), "h8": clipped(h, LARGEST)}


def _added(acc: Any, c: Any) -> dict[str, Any]:
    return {"D": acc + c}


def _added8(acc: Any, c: Any, scale: Any) -> dict[str, Any]:
    return {"D": acc * scale + c}


def _scaled8(acc: Any, scale: Any) -> dict[str, Any]:
    return {"D": acc * scale}


def _hidden(acc: Any, factor: Any, slope: Any) -> dict[str, Any]:
    p = acc * factor
    leaky = maximum(p, p * slope)
    return {"D": marked(leaky * leaky, p)}


def _hidden8(acc: Any, factor: Any, slope: Any, scale: Any) -> dict[str, Any]:
    p = acc * (factor * scale)
    leaky = maximum(p, p * slope)
    f = leaky * leaky
    return {"D": marked(f, p), "f8": clipped(f, LARGEST)}


def _hidden_backward(acc: Any, f: Any, factor: Any, slope: Any) -> dict[str, Any]:
    return {"D": acc * (root(f) * of_mark(f, 2.0, -2.0 * slope)) * factor, "along": (acc, f)}


def _hidden_backward8(acc: Any, f: Any, slope: Any) -> dict[str, Any]:
    dp8 = clipped(acc * (root(f) * of_mark(f, STEEP, -STEEP * slope)), LARGEST)
    return {"D": dp8, "across": dp8, "along": (acc, f)}


def _past_norm(acc: Any, c: Any, h: Any, along: Any, carry: Any) -> dict[str, Any]:
    return {"D": acc + c * carry - h * along}


def _past_norm8(acc: Any, c: Any, h: Any, along: Any, carry: Any, factor: Any, scale: Any) -> dict[str, Any]:
    return {"D": acc * (factor * scale) + c * carry - h * along}


def _past_norm_and_branch(acc: Any, c: Any, h: Any, along: Any, carry: Any, branch: Any) -> dict[str, Any]:
    return {"D": acc + c * carry - h * along + branch}


def _past_norm8_and_branch(
    acc: Any, c: Any, h: Any, along: Any, carry: Any, factor: Any, scale: Any, branch: Any
) -> dict[str, Any]:
    return {"D": acc * (factor * scale) + c * carry - h * along + branch}


def _past_mix(acc: Any, c: Any, x: Any, x0: Any, later: Any, first: Any, second: Any, along: Any) -> dict[str, Any]:
    dh = acc + c - (x * first + x0 * second) * along
    return {"D": dh * first, "dx0": dh * second + later, "dfirst": (dh, x), "dsecond": (dh, x0)}


def _past_mix_and_branch(
    acc: Any, c: Any, x: Any, x0: Any, later: Any, first: Any, second: Any, along: Any, branch: Any, ratio: Any
) -> dict[str, Any]:
    dh = acc + c - (x * first + x0 * second) * along
    return {"D": dh * first + branch * ratio, "dx0": dh * second + later, "dfirst": (dh, x), "dsecond": (dh, x0)}


def _past_mix_and_skip(
    acc: Any, c: Any, x: Any, x0: Any, later: Any, first: Any, second: Any, along: Any, s: Any, share: Any
) -> dict[str, Any]:
    dh = acc + c - (x * first + x0 * second) * along
    d = dh * first
    return {"D": d * share, "dx0": dh * second + later, "dfirst": (dh, x), "dsecond": (dh, x0), "dskip": (d, s)}


def _past_mix_of_first(acc: Any, c: Any, x0: Any, later: Any, both: Any, along: Any) -> dict[str, Any]:
    dh = acc + c - x0 * both * along
    return {"D": dh * both + later, "dboth": (dh, x0)}


def _past_mix_of_lane(
    acc: Any, c: Any, x: Any, x0: Any, later: Any, first: Any, second: Any, along: Any, carry: Any
) -> dict[str, Any]:
    dh = acc - (x * first + x0 * second) * along
    return {"D": dh * first + c * carry, "dx0": dh * second + later, "dfirst": (dh, x), "dsecond": (dh, x0)}


def _past_mix_of_lane_and_skip(
    acc: Any, c: Any, x: Any, x0: Any, later: Any, first: Any, second: Any, along: Any, carry: Any, s: Any, share: Any
) -> dict[str, Any]:
    dh = acc - (x * first + x0 * second) * along
    d = dh * first + c * carry
    sums = {"dfirst": (dh, x), "dsecond": (dh, x0), "dskip": (d, s), "djoined": (d, x)}
    return {"D": d * share, "dx0": dh * second + later, **sums}


TILES = {
    "into_stream": Tile(128, 128, (1, 2), pingpong=True),
    "into_stream8": Tile(128, 128, (1, 2), pingpong=True),
    "added": Tile(128, 128, (1, 2), pingpong=True),
    "added8": Tile(128, 128, (1, 2), pingpong=True),
    "scaled8": Tile(128, 128, (1, 2), pingpong=True),
    "hidden": Tile(128, 192, (2, 1), pingpong=True),
    "hidden8": Tile(),
    "hidden_backward": Tile(128, 128, (1, 2), pingpong=True),
    "hidden_backward8": Tile(128, 128, (1, 2), pingpong=True),
    "past_norm": Tile(128, 128, (1, 2), pingpong=True),
    "past_norm8": Tile(128, 128, (1, 2), pingpong=True),
    "past_mix": Tile(64, 128, (2, 1), pingpong=True),
}
"""The fastest of those tried on an H100 at the training's shapes (docs/performance.md)."""
into_stream = Product(_into_stream, ("squares",), tile=TILES["into_stream"])
"""(z, Wo', out, c=h)."""
into_stream8 = Product(_into_stream8, ("squares",), also=("h8",), tile=TILES["into_stream8"])
"""The same, and h8= in float8 too."""
added = Product(_added, tile=TILES["added"])
"""(f, W2', out, c=h)."""
added8 = Product(_added8, tile=TILES["added8"])
"""(f8, W2' in float8, out, c=h, scale= of the weight)."""
scaled8 = Product(_scaled8, tile=TILES["scaled8"])
"""(f8, W2' in float8, out, scale=)."""
hidden = Product(_hidden, of_rows=("factor",), tile=TILES["hidden"])
"""(h, W1, f, factor = s q [N], slope)."""
hidden8 = Product(_hidden8, also=("f8",), of_rows=("factor",), tile=TILES["hidden8"])
"""(h8, W1 in float8, f, factor, slope, scale=), and f8= in float8."""
hidden_backward = Product(_hidden_backward, ("along",), of_rows=("factor",), tile=TILES["hidden_backward"])
"""(g, W2'^T, dp', f=f, factor = s q, slope), and the sum of df f."""
hidden_backward8 = Product(_hidden_backward8, ("along",), also=("across",), tile=TILES["hidden_backward8"])
"""(g8, W2'^T in float8, dp8 = `OF_HIDDEN` dp / r in float8, f=f, slope, across= dp8 again, contiguous along tokens), r
`size` of `rounded_rows`, and the sum of df f / r."""
past_norm = Product(_past_norm, of_rows=("along",), tile=TILES["past_norm"])
"""(dp', W1^T, dh, c=g, h=h, along = q^2 / d sum of p dp [N], carry = c)."""
past_norm8 = Product(_past_norm8, of_rows=("along", "factor"), tile=TILES["past_norm8"])
"""(dp8, W1^T in float8, dh, c=g, h=h, along=, carry=, factor = s q r / `OF_HIDDEN` [N], scale= of the weight)."""
past_norm_and_branch = Product(_past_norm_and_branch, of_rows=("along",), tile=TILES["past_norm"])
"""`past_norm`, and branch= [N, d] is added."""
past_norm8_and_branch = Product(_past_norm8_and_branch, of_rows=("along", "factor"), tile=TILES["past_norm8"])
"""The same with the operands of `past_norm8`."""
past_mix = Product(
    _past_mix, column_sums=("dfirst", "dsecond"), also=("dx0",), of_rows=("along",), of_columns=("first", "second"),
    tile=TILES["past_mix"],
)  # fmt: skip
"""([dq dk dv dl]', [Wqkv; W]^T, dx, c=g, x=, x0=, later=, first=r0, second=r1 [d], along= [N], dx0=): g reaches h."""
past_mix_and_branch = Product(
    _past_mix_and_branch, column_sums=("dfirst", "dsecond"), also=("dx0",), of_rows=("along",),
    of_columns=("first", "second", "ratio"), tile=TILES["past_mix"],
)  # fmt: skip
"""The same, and branch= [N, d] times ratio= [d] is added to dx: what another reader of x sends back."""
past_mix_and_skip = Product(
    _past_mix_and_skip, column_sums=("dfirst", "dsecond", "dskip"), also=("dx0",), of_rows=("along",),
    of_columns=("first", "second", "share"), tile=TILES["past_mix"],
)  # fmt: skip
"""As `past_mix`, but what leaves is share= [d] times dx, and there is the sum of dx s; s= [N, d]."""
past_mix_of_first = Product(
    _past_mix_of_first, column_sums=("dboth",), of_rows=("along",), of_columns=("both",), tile=TILES["past_mix"]
)
"""([dq dk dv dl]', [Wqkv; W]^T, dx0, c=g, x0=, later=, both = r0 + r1 [d], along= [N]): x is x0 in the first layer,
its gradient dh (r0 + r1) + later, and r0 and r1 have the same."""
past_mix_of_lane = Product(
    _past_mix_of_lane, column_sums=("dfirst", "dsecond"), also=("dx0",), of_rows=("along",),
    of_columns=("first", "second"), tile=TILES["past_mix"],
)  # fmt: skip
"""As `past_mix`, but carry= [] times g reaches x beside the mix."""
past_mix_of_lane_and_skip = Product(
    _past_mix_of_lane_and_skip, column_sums=("dfirst", "dsecond", "dskip", "djoined"), also=("dx0",),
    of_rows=("along",), of_columns=("first", "second", "share"), tile=TILES["past_mix"],
)  # fmt: skip
"""Both, with carry=, s= and share=; then the sum of dx x too."""
