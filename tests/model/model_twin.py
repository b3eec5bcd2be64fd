"""A slow float64 model written from the formulas: loops over layers, heads and tokens, weights by name."""

import math

import torch

BOS, EPS = 1, 2.0**-23


def rms(x):
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + EPS)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


class Twin:
    """One row; `documents` are the starts that attention must not look across."""

    def __init__(self, config, weights, training=False):
        self.c, self.w, self.training = config, weights, training

    def losses(self, ids, targets, runs, documents):
        c, w = self.c, self.w
        self.ids = [int(i) for i in ids]
        starts = [max(d for d in documents if d <= t) for t in range(len(ids))]
        self.seen = torch.tensor([[start <= j <= t for j in range(len(ids))] for t, start in enumerate(starts)])
        x = x0 = self.embedding()
        for k in range(c.stack_runs):
            if c.stack_runs > 1 and c.loop_pos != "none":
                x = x + w["loop_pos"][k]
            x = self.u_net(x, x0, runs)
        h = rms(x)
        logits = self.capped(h @ w["tok_emb.weight"].T)
        values = torch.stack([self.surprise(row, t) for row, t in zip(logits, targets, strict=True)])
        if self.training and c.multi_token.heads:
            values = values + self.further(h, targets)
        return logits, values

    def capped(self, z):
        return self.c.softcap * torch.tanh(z / self.c.softcap)

    def surprise(self, logits, target):
        return torch.log(torch.exp(logits).sum()) - logits[target]

    def further(self, h, targets):
        """The same constant at every place, so that the mean over places is w times the mean of the heads' losses."""
        means = []
        for k in range(self.c.multi_token.heads):
            logits = self.capped(h @ self.w[f"mtp_heads.{k}.weight"].T)
            ahead = [self.surprise(logits[t], targets[t + k + 1]) for t in range(len(targets) - k - 1)]
            means.append(sum(ahead) / len(ahead))
        return self.c.multi_token.weight * sum(means) / len(means)

    # the stream before the first block

    def embedding(self):
        c, w, ids = self.c, self.w, self.ids
        x = torch.stack([w["tok_emb.weight"][i] for i in ids])
        for name, multipliers in (("bigram", (36313, 27191)), ("trigram", (36313, 27191, 51497))):
            table = getattr(c, name)
            if table.rows:
                rows = [self.hashed(t, multipliers, table.rows) for t in range(len(ids))]
                e = torch.stack([w[f"{name}.embed.weight"][row] for row in rows])
                x = x + w[f"{name}.factor"] * (e @ w[f"{name}.proj.weight"].T)
        if c.smear == "window":
            x = self.window_smear(x)
        if c.smear == "raw_vector":
            x = self.vector_smear(x)
        x = rms(x)
        return self.vector_smear(x) if c.smear == "vector" else x

    def hashed(self, t, multipliers, rows):
        if t < len(multipliers) - 1:
            return rows - 1
        value = 0
        for back, multiplier in enumerate(multipliers):
            value ^= multiplier * self.ids[t - back]
        return value % (rows - 1)

    def window_smear(self, x):
        out = [x[0]]
        for t in range(1, len(x)):
            logit = sum(self.w["smear_gate.weight"][0, i] * x[t, i] for i in range(self.c.gate_window))
            blocked = self.c.smear_mask and self.ids[t] == BOS
            out.append(x[t] if blocked else x[t] + self.w["smear_lambda"][0] * sigmoid(logit) * x[t - 1])
        return torch.stack(out)

    def vector_smear(self, x):
        g, out = sigmoid(self.w["smear.gate"]), []
        for t in range(len(x)):
            before = x[t - 1] if t else torch.zeros_like(x[0])
            blocked = self.c.smear_mask and self.ids[t] == BOS
            out.append(x[t] if blocked else (1 - g) * x[t] + g * before)
        return torch.stack(out)

    # the order of layers

    def halves(self, runs):
        """Physical layer and number of the run that begins there, or None, of each virtual layer."""
        c, order = self.c, []
        for layer in range(c.layers):
            repeated = c.loop_runs > 1 and layer == c.loop_start
            order.append((layer, 0 if repeated else None))
            if c.loop_runs > 1 and layer == c.loop_end:
                for run in range(1, runs):
                    order += [(i, run if i == c.loop_start else None) for i in range(c.loop_start, c.loop_end + 1)]
        return order[: len(order) // 2], order[len(order) // 2 :]

    def u_net(self, x, x0, runs):
        c = self.c
        first, second = self.halves(runs)
        rows = min(map(len, self.halves(c.loop_runs)))
        self.x_first, self.v_first = x0, None
        stack, lanes = [], None
        for place, (layer, run) in enumerate(first):
            x = self.block(layer, self.marked(x, run), x0)
            stack.append(x)
            if place == 0:
                self.x_first = x
        for j, (layer, run) in enumerate(second):
            skip = stack.pop() if stack and j < rows else None
            if not c.lanes or layer < c.parallel_from:
                x = self.block(layer, self.marked(self.skipped(j, x, skip), run), x0)
                continue
            if lanes is None and c.parallel == "merge":
                x, skip = self.skipped(j, x, skip), None  # before the split
            lanes = [x, x] if lanes is None else lanes
            lanes[0] = self.skipped(j, lanes[0], skip)
            if c.parallel == "lanes_sequential":
                lanes[1] = self.skipped(j, lanes[1], skip)
            lanes = getattr(self, c.parallel)(layer, lanes, x0)
        if lanes is None:
            return x
        share = self.w["lane_merge"] if c.parallel == "merge" else 0.5
        return share * lanes[0] + (1 - share) * lanes[1]

    def marked(self, x, run):
        return x if run is None or self.c.loop_pos == "none" else x + self.w["loop_pos"][run]

    def skipped(self, j, x, skip):
        if skip is None:
            return x
        weighted = self.w["skip_weights"][j] * skip
        if self.c.skips == "plain":
            return x + weighted
        gate = sigmoid(self.w["skip_gates"][j])
        return gate * x + (1 - gate) * weighted

    # one layer

    def of(self, i, name):
        return self.w[f"blocks.{i}.{name}"]

    def scale(self, i):
        return 1 / math.sqrt(i + 1) if self.c.ln_scale else 1.0

    def mixed(self, i, x, x0):
        return self.of(i, "resid_mix")[0] * x + self.of(i, "resid_mix")[1] * x0

    def block(self, i, x, x0):
        c, s = self.c, self.scale(i)
        x_in = self.mixed(i, x, x0)
        x1 = x_in + self.of(i, "attn_scale") * self.attended(i, x_in, x0)
        late = c.parallel == "gptj" and c.parallel_from is not None and i >= c.parallel_from
        read = x_in if late else x1
        m = self.fed(i, (read if c.norm == "hybrid" else rms(read)) * s)
        out = x1 + self.of(i, "mlp_scale") * m
        if c.norm == "hybrid":
            out = rms(out)
        if c.token_gate:
            gate = sigmoid(x_in.detach() @ self.of(i, "dtg_gate_w")[0] + self.of(i, "dtg_gate_b"))
            out = x_in + gate[:, None] * (out - x_in)
        return out

    def lanes(self, i, lanes, x0):
        a = self.of(i, "attn_scale") * self.attended(i, self.mixed(i, lanes[0], x0), x0)
        m = self.of(i, "mlp_scale") * self.fed(i, rms(lanes[1]) * self.scale(i))
        post, carry = self.w["parallel_post_lambdas"][i], self.w["parallel_resid_lambdas"][i]
        return [carry[k] * lanes[k] + post[0, k] * a + post[1, k] * m for k in (0, 1)]

    def lanes_sequential(self, i, lanes, x0):
        post, carry = self.w["parallel_post_lambdas"][i], self.w["parallel_resid_lambdas"][i]
        a = self.of(i, "attn_scale") * self.attended(i, self.mixed(i, lanes[0], x0), x0)
        lanes = [carry[0] * lanes[k] + post[0, k] * a for k in (0, 1)]
        m = self.of(i, "mlp_scale") * self.fed(i, rms(self.mixed(i, lanes[1], x0)) * self.scale(i))
        return [carry[1] * lanes[k] + post[1, k] * m for k in (0, 1)]

    def merge(self, i, lanes, x0):
        mix = self.mixed(i, lanes[0], x0)
        m = self.fed(i, rms(lanes[1]) * self.scale(i))
        return [
            mix + self.of(i, "attn_scale") * self.attended(i, mix, x0), lanes[1] + self.of(i, "mlp_scale") * m
        ]  # fmt: skip

    # attention

    def attended(self, i, x_in, x0):
        c, s = self.c, self.scale(i)
        n = n_v = rms(x_in) * s
        if c.value_residual == "gated":
            share = sigmoid(self.of(i, "vrl_lambda"))
            first = x0 if i == 0 else self.x_first
            n_v = rms(share * x_in + (1 - share) * first) * s
        a = self.attention(i, n, n_v)
        return rms(a) if c.norm == "peri" else a

    def values(self, i, n):
        """[T, Hkv, D]."""
        c = self.c
        v = n @ self.of(i, "attn.c_v.weight").T
        place = i - (c.layers - c.value_embed.last)
        if place >= 0:
            e = torch.stack([self.w["ve_shared.embed.weight"][token] for token in self.ids])
            p = e @ self.w["ve_shared.proj.weight"].T
            v = v + self.w["ve_layer_scales"][place] * self.w["ve_shared.factor"] * p
        v = v.view(len(n), c.kv_heads, c.head_dim)
        if i == 0 and self.v_first is None:
            self.v_first = v
        if i > 0 and c.value_residual == "learned":
            v = self.of(i, "attn.vr_lambda")[0] * self.v_first + self.of(i, "attn.vr_lambda")[1] * v
        if i > 0 and c.value_residual == "fixed":
            v = (1 - c.value_residual_alpha) * v + c.value_residual_alpha * self.v_first
        return rms(v) if c.norm == "hybrid" else v

    def attention(self, i, n, n_v):
        c, size = self.c, self.c.head_dim
        values = self.values(i, n_v)
        query = n @ self.of(i, "attn.c_q.weight").T
        heads = []
        for h in range(c.heads):
            kv = h // (c.heads // c.kv_heads)
            wk = self.of(i, "attn.c_k.weight")[kv * size : (kv + 1) * size]
            q = self.rotate(rms(query[:, h * size : (h + 1) * size])) * self.of(i, "attn.q_gain")[h]
            k, v = self.rotate(rms(n @ wk.T)), values[:, kv]
            if c.rope_scaling == "yarn":
                q, k = q * (0.1 * math.log(c.rope_factor) + 1), k * (0.1 * math.log(c.rope_factor) + 1)
            if c.attention == "differential":
                half = size // 2
                share = sigmoid(self.of(i, "attn.diff_lambda")[h])
                y = self.softmax(q[:, :half], k[:, :half]) @ v - share * self.softmax(q[:, half:], k[:, half:]) @ v
            else:
                y = self.softmax(q, k) @ v
            if i >= c.layers - c.xsa_layers:
                unit = v / torch.sqrt((v**2).sum(1, keepdim=True))
                y = y - (y * unit).sum(1, keepdim=True) * unit
            heads.append(y * self.gate(i, h, n, query))
        return torch.cat(heads, dim=1) @ self.of(i, "attn.proj.weight").T

    def softmax(self, q, k):
        weights = torch.exp(q @ k.T / math.sqrt(q.size(1))) * self.seen
        return weights / weights.sum(1, keepdim=True)

    def gate(self, i, h, n, query):
        """[T, 1] or [T, D]."""
        c, kind = self.c, self.c.attn_gate
        if kind == "none":
            return 1.0
        if kind == "headwise":
            return sigmoid(query[:, c.dim + h : c.dim + h + 1])
        if kind == "elementwise":
            return sigmoid(query[:, c.dim + h * c.head_dim : c.dim + (h + 1) * c.head_dim])
        w = self.of(i, "attn.attn_gate_w")[h]
        source = query if c.attn_gate_query else n
        logit = source[:, : len(w)] @ w
        if kind == "per_head":
            logit = logit + self.of(i, "attn.attn_gate_b")[h]
        if kind == "sparse":
            logit = c.attn_gate_scale * logit
        return ((2 if kind == "window" else 1) * sigmoid(logit))[:, None]

    def frequency(self, k):
        c = self.c
        base, r, f = c.rope_base, c.rope_dims, c.rope_factor
        if c.rope_scaling == "ntk":
            base = base * f ** (r / (r - 2))
        w = base ** (-2 * k / r)
        if c.rope_scaling == "yarn":
            keep = min(max((c.rope_length * w / (2 * math.pi) - 1) / 31, 0), 1)
            w = keep * w + (1 - keep) * w / f
        return w

    def rotate(self, x):
        half = self.c.rope_dims // 2
        columns = list(x.unbind(1))
        for k in range(min(half, len(columns))):
            angle = torch.arange(len(x), dtype=torch.float64) * self.frequency(k)
            a, b = x[:, k], x[:, k + half]
            columns[k] = a * torch.cos(angle) + b * torch.sin(angle)
            columns[k + half] = -a * torch.sin(angle) + b * torch.cos(angle)
        return torch.stack(columns, dim=1)

    # the MLP

    def fed(self, i, u):
        c = self.c
        m = self.mlp(i, u)
        if c.mlp_gate:
            gates = 2 * sigmoid(u[:, : c.gate_window] @ self.of(i, "mlp_gate_w").T)
            m = torch.cat([part * gates[:, h : h + 1] for h, part in enumerate(m.chunk(c.heads, dim=1))], dim=1)
        return rms(m) if c.norm == "peri" else m

    def mlp(self, i, u):
        c = self.c
        if c.mlp_rank < 1:
            p = u @ self.of(i, "mlp.fc.u.weight").T @ self.of(i, "mlp.fc.v.weight").T
        else:
            p = u @ self.of(i, "mlp.fc.weight").T
        if c.activation == "leaky_relu2":
            f = torch.where(p > 0, p**2, (c.leaky_slope * p) ** 2)
        elif c.activation == "star_relu":
            f = self.of(i, "mlp.star_scale") * torch.where(p > 0, p**2, 0 * p) + self.of(i, "mlp.star_bias")
        else:
            act = p * sigmoid(p) if c.activation == "swiglu" else torch.where(p > 0, p**2, 0 * p)
            f = act * (u @ self.of(i, "mlp.gate.weight").T)
        if self.training and c.norm_pct < 1:
            norms = f.detach().norm(dim=1)
            f = torch.where((norms < torch.quantile(norms, c.norm_pct))[:, None], f, 0 * f)
        if c.mlp_blocks == 1:
            return f @ self.of(i, "mlp.proj.weight").T
        parts = f.chunk(c.mlp_blocks, dim=1)
        return torch.cat([part @ self.of(i, f"mlp.proj.{b}.weight").T for b, part in enumerate(parts)], dim=1)
