"""A second decoder of our entropy coder, one symbol at a time in plain Python, written from docs/codec.md."""

import bisect
import math
import re
import struct
from itertools import accumulate, groupby, pairwise

TOTAL = 1 << 24
TAKEN = set()
"""Parts of the format that were met."""


def normal_table():
    one, fine = 1 << 128, 512
    q = term = one
    for n in range(1, 12):
        term = -term // (n * fine * fine)
        q += term
    density, ratio, sums = one, math.isqrt(q * one), [0]
    for _ in range(4096):
        density = density * ratio >> 128
        ratio = ratio * q >> 128
        sums.append(sums[-1] + density)
    upper = [((2 * s + one) * TOTAL // (2 * sums[4096] + one) + TOTAL) // 2 for s in sums[:4096]]
    return [TOTAL - t for t in reversed(upper)] + upper


T = normal_table()


def uniform(n):
    def find(p):
        s = ((p + 1) * n - 1) // TOTAL
        return s, s * TOTAL // n, (s + 1) * TOTAL // n - s * TOTAL // n

    return find


def gaussian(inner, mean, variance, times=1):
    n, scale = len(inner) + 1, times * (round(2**17 / math.sqrt(variance + 2**-14)) + 8) * 2.0**-16

    def low(s):
        edge = -(2.0**28) if s == 0 else 2.0**28 if s == n else inner[s - 1]
        cell = min(max(math.trunc(edge * scale + (4096 - mean * scale)), 0), 8191)
        return (0 if cell == 0 else TOTAL - n if cell == 8191 else T[cell] * (TOTAL - n) >> 24) + s

    def find(p):
        s = bisect.bisect_right(range(n), p, key=low) - 1
        return s, low(s), low(s + 1) - low(s)

    return find


class Lanes:
    def __init__(self, count, data):
        low, high = struct.unpack_from(f"<{count}I", data), struct.unpack_from(f"<{count}H", data, 4 * count)
        self.x = [a | b << 32 for a, b in zip(low, high, strict=True)]
        self.open(data[6 * count :])

    def open(self, data):
        self.words = iter(struct.unpack(f"<{len(data) // 2}H", data))

    def read(self, distributions):
        n, out = len(distributions), []
        steps = -(-n // len(self.x))
        for i in range(steps):
            part = range(n * i // steps, n * (i + 1) // steps)
            for lane, index in enumerate(part):
                x = self.x[lane]
                s, low, f = distributions[index](x % TOTAL)
                self.x[lane] = (x >> 24) * f + x % TOTAL - low
                out.append(s)
            for _ in range(2):
                for lane in range(len(part)):
                    if self.x[lane] < 1 << 32:
                        self.x[lane] = self.x[lane] << 16 | next(self.words)
        return out


def proportions(n, parts):
    ends = [n * end // sum(parts) for end in accumulate(parts, initial=0)]
    return [list(range(a, b)) for a, b in pairwise(ends) if b > a]


def solve(y, s, weight, prior):
    n = [a + weight * z for a, z in zip(y, prior, strict=True)]
    if len(n) < 2:
        return [n[0] / (s[0, 0] + weight)] if n else []
    a, c = s[0, 0] + weight, s[1, 1] + weight
    f = a * c - s[0, 1] * s[0, 1]
    return [(n[0] * c - n[1] * s[0, 1]) / f, (n[1] * a - n[0] * s[0, 1]) / f]


class Sums:
    """Sums of c r_i and r_i r_j."""

    def __init__(self, count):
        self.pairs = [(i, j) for i in range(count) for j in range(i, count)]
        self.y, self.s = [0] * count, dict.fromkeys(self.pairs, 0)

    def add(self, c, r):
        self.y = [y + c * a for y, a in zip(self.y, r, strict=True)]
        self.s = {(i, j): s + r[i] * r[j] for (i, j), s in self.s.items()}

    def plus(self, other):
        both = Sums(len(self.y))
        both.y = [a + b for a, b in zip(self.y, other.y, strict=True)]
        both.s = {key: s + other.s[key] for key, s in self.s.items()}
        return both


class Matrices:
    """x[layer][row][column] of one role."""

    def __init__(self, lanes, layers, rows, columns, scales):
        self.lanes, self.layers, self.rows, self.columns = lanes, layers, rows, columns
        least, most = lanes.read([uniform(256)] * 2)
        self.least, self.most, self.trellis = min(least, most) - 128, max(least, most) - 128, None
        if least > most:
            TAKEN.add("trellis")
            (number,) = lanes.read([uniform(5)])
            self.trellis = [(8, 11, 4), (16, 19, 4), (32, 37, 8), (64, 67, 20), (256, 333, 242)][number]
        (t,) = lanes.read([uniform(4096)])
        self.k = None
        if t == 0:
            TAKEN.add("rows of unequal energies")
            (t,) = lanes.read([uniform(4096)])
            h = [[1 / (s * s) for s in layer] for layer in scales]
            self.k = [[max(a / (math.fsum(layer) / rows), 2.0**-20) for a in layer] for layer in h]
        self.v = [max(e, 1) / 4096 for e in lanes.read([uniform(1 << 24)] * layers)]
        self.d = max(t, 1) / 4096
        self.u = 2 / max(self.d * self.d - 0.002, 0.002)
        self.inner = [(c + 0.5) * 256 for c in range(self.least, self.most)]
        self.x = [[[0] * columns for _ in range(rows)] for _ in range(layers)]
        self.earlier = {}

    def code(self, mean, variance):
        return gaussian(self.inner, mean, variance)

    def level(self, state, mean, variance):
        halves = [(h + 0.5) * 256 for h in range(self.least // 2, self.most // 2)]
        return gaussian(halves, round(mean / 2) - 128 * (state % 2), variance, times=2)

    def after(self, state, symbol):
        """The level and the next state."""
        _, h0, h1 = self.trellis
        half, z0 = symbol + self.least // 2, state % 2
        return 2 * half + z0, (state // 2) ^ (z0 * (h0 // 2)) ^ (half % 2 * (h1 // 2))

    def block(self, lines, positions, partner, weight, variance, seen):
        """`partner(layer, line)` -> sequences; `variance(layer, i, position, X)`; `seen(layer, i, position, c, e)`."""
        places = [(layer, i) for layer in range(self.layers) for i in range(len(lines))]
        r = {(layer, i): partner(layer, lines[i]) for layer, i in places}
        count = len(r[0, 0])
        sums = {place: Sums(count) for place in places}
        whole = {place: Sums(count) for place in places}
        for place in places:
            for values in zip(*r[place], strict=True):
                whole[place].add(0, values)
        earlier = self.earlier.setdefault(count, [Sums(count) for _ in range(self.layers)])
        state = {}

        def pooled(layer):
            total = Sums(count)
            for i in range(len(lines)):
                total = total.plus(sums[layer, i])
            return total.plus(earlier[layer])

        found = []
        for position in range(positions):
            if position % 8 == 0:
                pool = [pooled(layer) for layer in range(self.layers)]
                common = [solve(p.y, p.s, 3000.0, [0.0] * count) for p in pool]
                b = {place: solve(sums[place].y, sums[place].s, weight, common[place[0]]) for place in places}
            means, ask = {}, []
            for place in places:
                at = [values[position] for values in r[place]]
                means[place] = round(sum(f * value for f, value in zip(b[place], at, strict=True)) * 256)
                rest = sum(
                    b[place][i] * b[place][j] * (whole[place].s[i, j] - sums[place].s[i, j]) * (1 if i == j else 2)
                    for i, j in sums[place].pairs
                )
                expected = means[place], variance(*place, position, rest)
                if position % 512 == 0:
                    state[place] = 0
                ask.append(self.level(state[place], *expected) if self.trellis else self.code(*expected))
            for place, s in zip(places, self.lanes.read(ask), strict=True):
                c = s + self.least
                if self.trellis:
                    c, state[place] = self.after(state[place], s)
                found.append((place, position, c))
                seen(*place, position, c, c - means[place] / 256)
                sums[place].add(c, [values[position] for values in r[place]])
        self.earlier[count] = [pooled(layer) for layer in range(self.layers)]
        return found

    def by_rows(self, w, blocks, partner):
        big = [[0] * self.columns for _ in range(self.layers)]
        done, width = 0, self.columns
        for lines in blocks:
            g = [[(w + s / v) / (w + done) for s in sums] for sums, v in zip(big, self.v, strict=True)]
            scaled = []
            for layer in g:
                whole = list(accumulate(layer[::-1]))[-1]
                scaled.append([value * (width / whole) for value in layer])
            rest = [list(accumulate(layer[::-1]))[::-1] for layer in scaled]
            squares = [list(accumulate(value * value for value in layer[::-1]))[::-1] for layer in scaled]
            used = {(layer, i): 0.0 for layer in range(self.layers) for i in range(len(lines))}
            ratio = dict.fromkeys(used, self.u)

            def variance(layer, i, at, x, g=g, scaled=scaled, rest=rest, squares=squares, used=used, ratio=ratio,
                         lines=lines):  # fmt: skip
                v, gs, whole = self.v[layer], scaled[layer][at], rest[layer][at]
                if self.k:
                    level = g[layer][at] * v
                    return ratio[layer, i] * (level / (self.u + at)) * self.k[layer][lines[i]]
                spread = 2 * (squares[layer][at] * (v * v))
                a = spread / (spread + (self.d * v * width) ** 2)
                left = a * v * width + (1 - a) * v * whole - a * used[layer, i] - x
                return max(left * (gs / whole), v * gs / 5)

            def seen(layer, i, at, c, e, g=g, used=used, ratio=ratio, lines=lines):
                used[layer, i] += c * c
                if self.k:
                    ratio[layer, i] += e * e / (g[layer][at] * self.v[layer] * self.k[layer][lines[i]])

            for (layer, i), at, c in self.block(lines, width, partner, 200.0, variance, seen):
                self.x[layer][lines[i]][at] = c
            for layer in range(self.layers):
                for at in range(width):
                    column = [self.x[layer][line][at] for line in lines]
                    if self.k:
                        even = [min(max(round(256 / self.k[layer][line]), 1), 65536) for line in lines]
                        big[layer][at] += sum(c * c * f for c, f in zip(column, even, strict=True)) / 256
                    else:
                        big[layer][at] += sum(c * c for c in column)
            done += len(lines)

    def by_columns(self, w, weight, blocks, partner):
        used = [[0] * self.rows for _ in range(self.layers)]
        done, width = 0, self.columns
        for lines in blocks:
            rest, level = width - done, []
            for layer, v in enumerate(self.v):
                spread = 2 * (rest * (v * v))
                a = spread / (spread + (self.d * v * width) ** 2)
                level.append([max((a * (v * width - u) + (1 - a) * v * rest) / rest, v / 4) for u in used[layer]])
                if self.k:
                    m = [v * k for k in self.k[layer]]
                    level[-1] = [b * ((self.u + u / b) / (self.u + done)) for b, u in zip(m, used[layer], strict=True)]
            sums = {(layer, i): float(w) for layer in range(self.layers) for i in range(len(lines))}

            def variance(layer, i, at, x, level=level, sums=sums):
                return sums[layer, i] * (level[layer][at] / (w + at))

            def seen(layer, i, at, c, e, level=level, sums=sums):
                sums[layer, i] += e * e / level[layer][at]

            for (layer, i), at, c in self.block(lines, self.rows, partner, weight, variance, seen):
                self.x[layer][at][lines[i]] = c
                used[layer][at] += c * c
            done += len(lines)


def head_blocks(lines, shared_rows, heads):
    """Blocks of the lines of all heads; of each line its place in the shared head, and whether it has a head before."""
    size = lines // heads
    per_group = lines // shared_rows
    blocks = [[n for n in range(lines) if n // size % per_group == index] for index in range(per_group)]
    shared = [n // (size * per_group) * size + n % size for n in range(lines)]
    return size, blocks, shared, [n // size % per_group > 0 for n in range(lines)]


def matrices(lanes, group, keys, shape, known, groups, heads):
    """Decode one stack of matrices of a group into `known`."""
    scales = [[value_of(bits) for bits in known.get(key.removesuffix("q") + "scale", [])] for key in keys]
    m = Matrices(lanes, len(keys), *shape, scales)
    rows, columns = shape

    def stack(role):
        """[layer][row][column] of another role; nothing where there is none."""
        if role not in groups:
            return []
        TAKEN.add(f"partners from {role}")
        size = groups[role][0][2]
        return [[known[key][i * size[1] : (i + 1) * size[1]] for i in range(size[0])] for key, _, _ in groups[role]]

    if group == "tok_emb" and len(keys) == 1 and rows >= 64 and columns <= 2048:
        embedding(m, known.get(keys[0].removesuffix("q") + "scale"))
    elif m.trellis and group not in ("mlp.proj", "attn.proj"):
        m.by_columns(100, 2000.0, proportions(columns, (32, 16, 8, 4, 2, 1, 1)), lambda layer, line: [])
    elif group == "mlp.proj":
        up = stack("mlp.fc")
        partner = (lambda layer, line: [up[layer][line]]) if up else lambda layer, line: []
        m.by_columns(100, 2000.0, proportions(columns, (32, 16, 8, 4, 2, 1, 1)), partner)
    elif group == "attn.proj":
        v = stack("attn.c_v")
        blocks = proportions(columns, (1, 1, 2, 4, 8))
        if v:
            size, blocks, shared, before = head_blocks(columns, len(v[0]), heads)
        last = blocks.pop()
        blocks += [[last[i] for i in part] for part in proportions(len(last), (4, 2, 1, 1))]
        m.by_columns(
            50, 300.0, blocks,
            lambda layer, n: [v[layer][shared[n]], *[[row[n - size] for row in m.x[layer]]] * before[n]] if v else [],
        )  # fmt: skip
    elif group == "attn.c_q":
        k = stack("attn.c_k")
        size, blocks, shared, before = head_blocks(rows, len(k[0]), heads)
        m.by_rows(150, blocks, lambda layer, n: [k[layer][shared[n]], *[list(m.x[layer][n - size])] * before[n]])
    else:
        w = {"attn.c_k": 12, "attn.c_v": 8, "mlp.fc": 300}.get(group, 32)
        m.by_rows(w, proportions(rows, (1, 1, 2, 4, 8)), lambda layer, line: [])
    for key, x in zip(keys, m.x, strict=True):
        known[key] = [c for row in x for c in row]


def factors(matrix):
    """L in 2^-18 as [k][j], j >= k, and D."""
    n, one = len(matrix), 2.0**18
    rest = [[float(round(value * one)) for value in row] for row in matrix]
    upper, d = [[0.0] * n for _ in range(n)], [0.0] * n
    for start in range(0, n, 32):
        stop = min(start + 32, n)
        panel = {i: [value / one for value in rest[i]] for i in range(start, stop)}
        for k in range(start, stop):
            d[k] = max(panel[k][k], 2.0**-4)
            for j in range(k, n):
                upper[k][j] = min(max(float(round(panel[k][j] / d[k] * one)), -16 * one), 16 * one)
            upper[k][k] = one
            row = [value / one for value in upper[k]]
            for i in range(k + 1, stop):
                for j in range(i, n):
                    panel[i][j] -= d[k] * row[i] * row[j]
        for i in range(stop, n):
            for j in range(i, n):
                total = sum(upper[k][i] * round(upper[k][j] * d[k]) for k in range(start, stop))
                rest[i][j] -= round(total / one)
    return upper, d


def embedding(m, scale):
    rows, columns, v, lanes = m.rows, m.columns, m.v[0], m.lanes
    signed = [s - 65536 if s & 32768 else s for s in scale] if scale else [0] * rows
    order = sorted(range(rows), key=lambda row: -signed[row])
    s = max(64, -(-rows // 16))
    sizes = [s // 4] * 2 + [s // 2] * 2 + [s] * max(0, rows // s - 3) + [s // 2] * 3
    starts = [start for start in accumulate(sizes, initial=0) if start < rows][: len(sizes)]
    sums, count = [[0] * columns for _ in range(columns)], 0.0
    x, w, parents = [[0] * columns for _ in range(rows)], [[0] * columns for _ in range(rows)], [[-1, -1]] * rows
    z = [math.sqrt(m.k[0][row]) if m.k else 1.0 for row in order]
    unit = 256.0 if m.k else 1.0
    for start, stop in zip(starts, [*starts[1:], rows], strict=True):
        asked = list(range(start, stop))
        for row in asked:
            parents[row] = [-1, -1]
        for which in range(2):
            flags = lanes.read([uniform(2)] * len(asked))
            asked = [row for row, flag in zip(asked, flags, strict=True) if flag]
            for row, parent in zip(asked, lanes.read([uniform(stop)] * len(asked)), strict=True):
                parents[row][which] = parent
                TAKEN.add(f"parent {which + 1}" + (" in the block" if parent >= start else ""))
        depth = {}
        for row in range(start, stop):
            todo = [row]
            while todo:
                inner = [p for p in parents[todo[-1]] if p >= start]
                if missing := [p for p in inner if p not in depth]:
                    todo += missing
                else:
                    depth[todo.pop()] = max((depth[p] + 1 for p in inner), default=0)
        matrix = [[value / (count + 1536) for value in line] for line in sums]
        for j in range(columns):
            d = sums[j][j]
            matrix[j][j] = (d + 1536 * ((d + 64 * (v * unit)) / (count + 64))) / (count + 1536)
        upper, pivots = factors(matrix)
        pivots = [d / unit for d in pivots]
        line = sorted(range(start, stop), key=lambda row: depth[row])
        related = {row: parents[row][0] >= 0 for row in line}
        squares = {row: 130.0 * 64 * 64 * (1.0 - 0.18 * related[row]) for row in line}
        e, b, level = {row: [0] * columns for row in line}, {}, {}
        ridge = {row: Sums(2) for row in line}

        def kin(row, j):
            return [w[parent][j] if parent >= 0 else 0 for parent in parents[row]]

        for t in range(columns + max(depth.values())):
            if t % 8 == 0:
                for row in line:
                    for j in range(max(t - 8 - depth[row], 0), min(t - depth[row], columns)):
                        ridge[row].add(w[row][j], kin(row, j))
                    b[row] = solve(ridge[row].y, ridge[row].s, 120.0 * 64 * 64, [0.27, 0.27])
                    level[row] = squares[row] / ((130 + (t - depth[row])) * 64 * 64)
            ask, put = [], []
            for row in line:
                j = t - depth[row]
                if 0 <= j < columns:
                    linear = round(sum(upper[k][j] * e[row][k] for k in range(j)) / 2.0**18)
                    linear = min(max(linear, -(2**15)), 2**15)
                    near, root = kin(row, j), math.sqrt(pivots[j])
                    fit = round(b[row][0] * near[0] + b[row][1] * near[1])
                    mean = linear + round(fit * (root * (256.0 / 64.0) * z[row]))
                    ask.append(m.code(mean, level[row] * pivots[j] * (z[row] * z[row])))
                    put.append((row, j, linear, fit, 64.0 / 256.0 / root / z[row]))
            for (row, j, linear, fit, finer), symbol in zip(put, lanes.read(ask), strict=True):
                x[row][j] = symbol + m.least
                e[row][j] = 256 * x[row][j] - linear
                w[row][j] = round(e[row][j] * finer)
                squares[row] += (w[row][j] - fit) ** 2
        kept = max(1.0 - 0.07 * (stop - start) / 256, 0.25)
        even = [[round(c * (16.0 / z[row])) if m.k else c for c in x[row]] for row in range(start, stop)]
        for i in range(columns):
            for j in range(columns):
                sums[i][j] = round(sums[i][j] * kept) + sum(row[i] * row[j] for row in even)
        count = count * kept + (stop - start)
    for place, row in enumerate(order):
        m.x[0][row] = x[place]


def rank_of(bits):
    return 65535 - bits if bits & 32768 else bits | 32768


def value_of(bits):
    (value,) = struct.unpack("<e", struct.pack("<H", bits))
    if math.isfinite(value):
        return value
    return 65536.0 + rank_of(bits) if rank_of(bits) & 32768 else rank_of(bits) - 131072.0


def grid(number):
    """Bit patterns in order of value."""
    if number < 5:
        steps, root, octave = 2 << number, 2.0, [1.0]
        for _ in range(number + 1):
            root = math.sqrt(root)
        for _ in range(steps - 1):
            octave.append(octave[-1] * root)
        powers = [struct.pack("<e", math.ldexp(value, o)) for o in range(-24, 15) for value in octave]
        return sorted({int.from_bytes(power, "little") for power in powers})
    zeros = 13 - number if number < 12 else 0
    return sorted((bits for bits in range(65536) if bits % (1 << zeros) == 0), key=rank_of)


class Vectors:
    """The vectors of one group."""

    def __init__(self, lanes):
        self.lanes, self.past, self.learned = lanes, [], {}

    def one(self, n):
        return self.lanes.read([uniform(n)])[0]

    def vector(self, kind, n):
        patterns = grid(number := self.one(13))
        TAKEN.add(f"grid {number}")
        values = [value_of(bits) for bits in patterns]
        runs = self.one(8) if n >= 32 else 0
        if runs:
            TAKEN.add(f"{1 << runs - 1} falling runs")
            size = n >> runs - 1
            return [patterns[r] for _ in range(1 << runs - 1) for r in self.falling(size, len(patterns))]
        shift = 4 if len(patterns) == 65536 else 0
        middle = values[self.one(len(patterns) >> shift) << shift | 1 << shift >> 1]
        width = self.one(160)
        s = (1.0, 1.1875, 1.40625, 1.6875)[width % 4] * 2.0 ** (width // 4 - 24)
        c = (0.0, 0.03, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0)[self.one(8)]
        h = self.one(9)
        TAKEN.update([f"tail {c}", "low bits" if h else "no low bits"])

        def warped(value):
            u = (value - middle) / s
            return min(max(round(u / math.sqrt(math.sqrt(1 + c * (u * u))) * 4096), -(2**26)), 2**26)

        firsts = range(1 << h, len(values), 1 << h)
        inner = [warped((values[i] + values[i - 1]) * 0.5) for i in firsts]
        same = [y for past, y in self.past if past == kind and len(y) == n][-1:]
        other = [y for past, y in self.past if past != kind and len(y) == n][-2:][::-1]
        others = [*(same or [[0] * n]), *other, *[[0] * n] * (2 - len(other))]
        rank, y = [0] * n, [0] * n
        prior = self.learned.get(kind, [0.0] * 4)
        square, cross, noise, count = [[0.0] * 4 for _ in range(4)], [0.0] * 4, 8.0 * 4096**2, 8.0
        stride = 1
        while n // (2 * stride) >= 16:
            stride *= 2
        passes = [(list(range(0, n, stride)), 0)]
        while stride > 1:
            stride //= 2
            passes.append((list(range(stride, n, 2 * stride)), stride))
        for places, distance in passes:
            if not places:
                continue
            b = self.regression(square, cross, prior)
            r = {}
            for at in places:
                near = 0
                if distance:
                    near = round((y[at - distance] + y[at + distance]) / 2) if at + distance < n else y[at - distance]
                r[at] = [near, *(past[at] for past in others)]
            means = [
                min(max(round(sum(f * a for f, a in zip(b, r[at], strict=True))), -(2**17)), 2**17) for at in places
            ]
            high = self.lanes.read([gaussian(inner, mean, noise / (count * 65536)) for mean in means])
            low = self.lanes.read([uniform(1 << h)] * len(places))
            square = [[value / 2 for value in row] for row in square]
            cross, noise, count = [value / 2 for value in cross], noise / 2, count / 2 + len(places)
            for at, mean, a, d in zip(places, means, high, low, strict=True):
                rank[at] = min(a << h | d, len(values) - 1)
                y[at] = min(max(warped(values[rank[at]]), -8 * 4096), 8 * 4096)
                noise += (y[at] - mean) ** 2
                for i in range(4):
                    cross[i] += r[at][i] * y[at]
                    for j in range(4):
                        square[i][j] += r[at][i] * r[at][j]
        self.learned[kind] = self.regression(square, cross, prior)
        self.past.append((kind, y))
        return [patterns[r] for r in rank]

    def regression(self, square, cross, prior):
        p = 24.0 * 4096**2
        a = [[value + (p if i == j else 0.0) for j, value in enumerate(row)] for i, row in enumerate(square)]
        b = [value + p * z for value, z in zip(cross, prior, strict=True)]
        for k in range(4):
            for i in range(k + 1, 4):
                factor = a[i][k] / a[k][k]
                a[i] = [x - factor * y for x, y in zip(a[i], a[k], strict=True)]
                b[i] -= factor * b[k]
        for k in reversed(range(4)):
            for i in range(k + 1, 4):
                b[k] -= a[k][i] * b[i]
            b[k] /= a[k][k]
        return b

    def falling(self, n, size):
        x = [0] * n
        x[0], x[-1] = self.lanes.read([uniform(size)] * 2)
        d = 1 << max(n - 2, 0).bit_length() >> 1
        inner = [(rank + 0.5) * 256 for rank in range(size - 1)]
        while d:
            places, ask = list(range(d, n - 1, 2 * d)), []
            for at in places:
                left, right = at - d, min(at + d, n - 1)
                mean = round((x[left] + (x[right] - x[left]) * (d / (right - left))) * 256)
                ask.append(gaussian(inner, mean, (x[left] - x[right]) ** 2 / (4 * (right - left + 1)) + 1 / 12))
            for at, r in zip(places, self.lanes.read(ask), strict=True):
                x[at] = r
            d //= 2
        return x


def code_group(lanes, group, groups, known, heads):
    vectors = Vectors(lanes)
    for (dtype, shape), run in groupby(groups[group], key=lambda entry: entry[1:]):
        keys = [key for key, _, _ in run]
        if math.prod(shape) == 0:
            known.update((key, []) for key in keys)
        elif dtype == "int8":
            matrices(lanes, group, keys, shape, known, groups, heads)
        else:
            for key in keys:
                n, width = math.prod(shape), shape[-1] if shape else 1
                size = width if width >= 32 and n // width <= 64 else n
                letters = [f".{chr(97 + i)}" if n > width else "" for i in range(n // size)]
                known[key] = [bits for c in letters for bits in vectors.vector(re.sub(r"\d+", "", key + c), size)]


ORDER = ("scales", None, "attn.c_k", "attn.c_v", "attn.c_q", "attn.proj", "mlp.fc", "mlp.proj", "tok_emb")


def decode(streams, groups, heads):
    """Tensors by key, flat: codes, or float16 bit patterns.

    `streams`: group -> bytes of codec 4; `groups`: group -> (key, "int8" or "float16", shape) in order of the layout.
    """
    names = sorted((g for g in groups if g != "small"), key=lambda g: ORDER.index(g if g in ORDER else None))
    symbols = sum(math.prod(shape) for name in names for _, _, shape in groups[name])
    count = max(8, min(2048, 1 << (symbols >> 14).bit_length()))
    known = {}
    lanes = Lanes(count, streams[names[0]])
    for name in names:
        if name != names[0]:
            lanes.open(streams[name])
        code_group(lanes, name, groups, known, heads)
        assert next(lanes.words, None) is None
    d = [x - (1 << 32) for x in lanes.x]
    TAKEN.add("lanes carry" if any(d) else "lanes carry nothing")
    tail = struct.pack(f"<{count}I", *d) if any(d) else b""
    if "small" in groups:
        lanes = Lanes(16, tail + streams["small"])
        code_group(lanes, "small", groups, known, heads)
        assert next(lanes.words, None) is None
        assert lanes.x == [1 << 32] * 16
    return known
