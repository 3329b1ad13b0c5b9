"""Cells drawn at random, each from its seed: what users may write, most of it in the engine's range and some beyond."""

from __future__ import annotations

import random
import re

from tests.weightspace.cells import Cell

# {a} to {d} are tiles of the same size, {v} and {u} vectors and {W} and {X} square matrices of that size, {n} any
# number, {p} a positive one, {q} one of 0 to 1, {r} the size itself.
PLAIN = """
torch.tanh({a}) | torch.sigmoid({a}) | torch.relu({a}) | F.relu({a}) | torch.sin({a}) | torch.cos({a}) | -{a}
torch.abs({a}) | F.softplus({a}) | F.leaky_relu({a}) | F.leaky_relu({a}, {p}) | {a} ** 2 | {a}.square() | {a}.clone()
{n} * {a} | {a} * {n} | {a} + {n} | {n} + {a} | {a} - {n} | {n} - {a} | {a} / {p} | {a}.detach() | {a}.pow(2)
torch.exp(-{a}.abs()) | torch.exp(0.3 * torch.tanh({a})) | torch.log({a}.abs() + {p}) | torch.sqrt({a}.abs() + {p})
spike({a}, {p}) | {a} + {b} | {a} + {b} | {a} - {b} | {a} * {b} | {a} * {b} | {a} * {b} | {a} / ({b}.abs() + {p})
torch.maximum({a}, {b}) | torch.minimum({a}, {b}) | {a} * {b} + {c} | {c} + {a} * {b} | {a} * {b} + {c} * {d}
(1 - {a}) * {b} + {a} * {c} | {a} + {b} + {c} | {a} * {b} * {c} | {a} * {b} - {c} | {c} - {a} * {b} | {b} + {b} * {a}
{a} + {v} | {a} * {v} | {a} - {v} | {v} - {a} | {v} * {a} | {v} + {a} | {a} / ({v}.abs() + {p}) | {a} * {v} + {b}
{b} + {v} * {a} | {a} * {v} + {b} * {c} + {u} | {a} + {v} + {u} | {a} * {v} + {b} * {v} | {a} * {b} * {v} + {u}
F.linear({a}, {W}) | F.linear({a}, {W}, {v}) | {a} @ {W} | {a} @ {W}.t() | torch.addmm({v}, {a}, {W}.t())
{a}.mm({W}) | F.linear({a}, {W}) + {b} | {a} + F.linear({b}, {W}, {v}) | F.linear({a}, {W}) + F.linear({b}, {X}) + {v}
F.linear({a} * {b}, {W}) + {c} * {d} | {q} * {a} + {q} * torch.tanh({b}) | torch.tanh(F.linear({a}, {W}) + {c} * {v})
torch.log({a} * {a}) | torch.sqrt({a}.abs()) | torch.sigmoid({a}) * {b} | torch.tanh({a}) * torch.sigmoid({b})
torch.relu({a}) * torch.relu({a}) | {a} + {a} | {a} - {a}
"""
BEYOND = """
F.softplus({a}, beta={p}) | F.softplus({a}, threshold={q}) | F.softplus({a}, {p}, {q}) | F.leaky_relu({a}, 0.0)
F.leaky_relu({a}, -{q}) | F.leaky_relu({a}, 2.5) | torch.sub({a}, {b}, alpha={n}) | torch.add({a}, {b}, alpha={n})
torch.rsub({a}, {n}, alpha={n}) | torch.rsub({a}, {b}) | torch.rsub({a}, {b}, alpha={n}) | torch.rsub({a}, {n})
torch.add({a}, {v}, alpha={n}) | torch.sub({a}, {v}, alpha={n}) | torch.sub({v}, {a}, alpha={n}) | {a} ** 3 | {a} ** 1
({a}.abs() + {p}) ** 0.5 | ({a}.abs() + {p}) ** -1 | ({a}.abs() + {p}) ** {b} | {p} ** {a} | {a} ** 0
{a}.pow({a} > 0) | {a}.clamp(-{q}, {q}) | {a}.clamp(min={q}) | {a}.clamp(max={q}) | {a}.clamp({v}, {v} + 1)
torch.clip({a}, -0.3, 0.3) | torch.where({a} > 0, {a}, {b}) | torch.where({a} > {b}, {c}, {n})
torch.where({v} > 0, {a}, {b}) | torch.sign({a}) | ({a} > 0) * {b} | ({a} > {n}).to({a}.dtype)
({a} > 0).float() * {b} | {a}.masked_fill({a} < {n}, 0.0) | {a}.floor() | torch.div({a}, {p}, rounding_mode="floor")
torch.div({a}, {p}, rounding_mode="trunc") | {a} // {p} | {a} % {p} | {n} / (1 + {a}.abs())
{a}.mean(1, keepdim=True) + {b} | {a} - {a}.mean(dim=1, keepdim=True) | {a} / (1 + {a}.abs().sum(-1, keepdim=True))
torch.softmax({a}, 1) | F.log_softmax({a}, dim=-1) | F.layer_norm({a}, ({r},)) | F.layer_norm({a}, ({r},), {v}, {u})
F.gelu({a}) | F.gelu({a}, approximate="tanh") | F.silu({a}) | F.elu({a}) | F.elu({a}, alpha={p}) | F.selu({a})
F.celu({a}, {p}) | F.hardtanh({a}) | F.hardtanh({a}, -{q}, {q}) | F.relu6({a}) | F.hardsigmoid({a}) | F.hardswish({a})
F.mish({a}) | F.softsign({a}) | F.logsigmoid({a}) | F.threshold({a}, {q}, {n}) | F.tanhshrink({a})
F.softshrink({a}, {q}) | torch.erf({a}) | torch.expm1({a}) | torch.log1p({a}.abs()) | torch.sinh({a})
torch.atan({a}) | torch.asinh({a}) | ({a}.abs() + {p}).rsqrt() | ({a}.abs() + {p}).reciprocal() | torch.exp2({a})
torch.log2({a}.abs() + {p}) | {a}.frac() | torch.logaddexp({a}, {b}) | torch.hypot({a}, {b} + 2)
torch.atan2({a}, {b} + 3) | torch.fmod({a}, {p}) | {a}.nan_to_num() | torch.lerp({a}, {b}, {q})
torch.lerp({a}, {b}, {c}) | torch.lerp({a}, {b}, {v}.expand_as({a})) | torch.max({a}, {b})
torch.addcmul({a}, {b}, {c}) | torch.addcmul({a}, {b}, {c}, value={n})
torch.addcdiv({a}, {b}, {c}.abs() + 1, value={n}) | torch.addmm({v}, {a}, {W}, beta={n}, alpha={n})
torch.addmm({b}, {a}, {W}) | torch.addmm({b}, {a}, {W}, alpha={n}, beta={n})
torch.baddbmm({b}[None], {a}[None], {W}[None])[0] | torch.einsum("bi,oi->bo", {a}, {W})
torch.einsum("bi,i->bi", {a}, {v}) | torch.bmm({a}[:, None], {W}.expand(len({a}), -1, -1))[:, 0]
torch.tensordot({a}, {W}, dims=([1], [1])) | {a}.matmul({W}) | F.linear({a}[:, None], {W}).squeeze(1)
F.bilinear({a}, {b}, {W}[None].expand({r}, -1, -1)) | F.normalize({a} + 2, dim=1) | {a} * {v}.sum() | {a} + {W}.mean()
{a} * {v}[0] | {a} * {v}[-1] | {a} + {v}[None] | {a} * {v}.unsqueeze(0) | {a} + {v}.expand_as({a})
torch.flip({a}, [1]) | torch.roll({a}, 1, 1) | {a}.t().t() | {a}.reshape(-1, {r}) | {a}.view({a}.shape[0], {r})
{a}.cumsum(1) | {a}.repeat(1, 2)[:, :{r}] | {a}[:, :1].expand(-1, {r}) | {a}[:, :1] * {b} | {a}[:, :1] + {b}
{b} - {a}[:, -1:] | torch.stack([{a}, {b}], 1).flatten(1)[:, {r}:] | torch.stack([{a}, {b}], 2).flatten(1)[:, :{r}]
torch.stack({a}.unbind(1), 1) | {a}.index_select(1, torch.arange({r} - 1, -1, -1)) | {a}[:, list(range({r}))[::-1]]
{a}.gather(1, torch.zeros_like({a}).long()) | torch.zeros_like({a}) + {b} | torch.ones_like({a}) * {b}
torch.full_like({a}, {n}) - {b} | {a}.new_zeros({a}.shape) + {b} | {a} + {a}.new_ones({r})
{a} * {a}.new_full(({r},), {n}) | {a} + {a}.new_tensor([{n}] * {r}) | {a} * torch.tensor({n}) | {a} - {a}.new_zeros(1)
{a} + torch.tensor([{n}] * {r}) | {a} * torch.tensor([{n}] * {r}, dtype={a}.dtype) | {a} * torch.arange({r})
{a} + torch.full(({r},), {n}) | {a} * torch.arange({r}, dtype={a}.dtype) | {a} @ torch.eye({r}, dtype={a}.dtype)
{a} * torch.linspace(0, 1, {r}, dtype={a}.dtype) | {a} + torch.zeros({a}.shape[0], {r}, dtype={a}.dtype)
{a} + torch.full((len({a}), 1), {n}, dtype={a}.dtype) | {a} + torch.ones(1, {r}) | {a} * (0.1 * {a}.shape[0])
{a} / len({a}) | {a} + 1 / {a}.size(0) | {a} * {a}.shape[1] | {a} / {a}.numel() | {a} - {a}.size(-1) / 2
{a} * {v}.shape[0] | {a} * True | {a} + False | {a} * 2 | 3 - {a} | {a} / 4 | {a}.to(torch.float64).to({b}.dtype)
{a}.float().to({b}.dtype) + {b} | torch.sort({a}, dim=1).values | {a}.max(1, keepdim=True).values + {b}
{a}.norm(dim=1, keepdim=True) * {b} | torch.prod({a}, 1, True) + {b} | F.glu(torch.cat([{a}, {b}], 1))
F.pad({a}, (1, 0))[:, :{r}] | F.dropout({a}, 0.3, False) | torch.special.expit({a}) | torch.square({a})
{a}.contiguous() | {a}.detach() * {a} | {a} + ({b} - {b}.detach()) | {a}.positive() | torch.neg({a})
torch.negative({a}) | torch.clone({a}) | {a}.unflatten(1, (1, {r})).flatten(1) | {a}.tile(1, 1)
torch.logit({a}.abs().clamp(0.1, 0.9)) | {a}.unsqueeze(1).squeeze(1) | {a}[..., None].flatten(1)
torch.mul({a}, {b}, out=None) | torch.div({a}, {b}.abs() + 1) | torch.true_divide({a}, {p}) | torch.subtract({a}, {b})
torch.multiply({a}, {b}) | torch.divide({a}, {v}.abs() + 1) | torch.add({v}, {a}, alpha={n}) | {v} / ({a}.abs() + 1)
torch.maximum({a}, {v}) | torch.minimum({a}, {v} * 0) | {a} * {v} / {p} | {n} * {v} + {a}
torch.float_power({a}, 2).to({a}.dtype) | torch.heaviside({a}, {b}) | torch.where({a} > 0, {a}.exp(), -{a})
{a} + {a}.dim() | {a} + float({a}.shape[1]) | {a}.T.T | {a} - ({a} > {b}) * {c} | {a} == {b}
"""
IN_PLACE = """
{t} = {a}.clone(); {t} += {b} | {t} = {a} + 0; {t}.mul_({b}) | {t} = {a} * 1; {t}.copy_({b})
{t} = {a}.clone(); {t}[:, :1] = {b}[:, :1] | {t} = {a}.clone(); {t}[:, 0] = 0
{t} = {a}.clone(); {t}[:, -1:] += {b}[:, -1:] | {t} = torch.tanh({a}); {t}.zero_() | {t} = F.relu_({a}.clone())
{t} = {a}.clone(); {t}.add_({v}, alpha={n}) | {t} = torch.tanh_({a} + {b}) | {t} = {a} * {b}; {t} += {c}; {t} *= {n}
{t} = ({a} + {b}).relu_() | {t} = {a}.clone(); {t}.fill_({n}) | {t} = {a}.new_zeros({a}.shape); {t}[:, :] = {b}
{t} = torch.empty_like({a}); {t}.copy_({b}) | {t} = {a} * {b}; {t}.sub_({c}) | {t} = {a}.clone(); {t}.clamp_(min=0)
{t} = {a} * 2; {t}[:, :1].mul_(3) | {t} = {a}.new_empty({a}.shape); {t}[:, :] = {a}
w{t} = {v}.clone(); w{t}.mul_({n}); {t} = {a} * w{t}
w{t} = {W}.clone(); w{t}.fill_diagonal_(0); {t} = F.linear({a}, w{t}) | w{t} = {W} * 1; w{t}[0] = 0; {t} = {a} @ w{t}
w{t} = {v} + 0; w{t}[:1] += {v}[:1]; {t} = {a} + w{t} | w{t} = {W}.clone(); w{t}.t()[0] += 1; {t} = {a} @ w{t}
w{t} = {v}.clone(); w{t}.add_({u}); {t} = {a} - w{t}; w{t}.zero_()
w{t} = {a}.new_zeros({r}); w{t}[:] = {v}; {t} = {a} * w{t}
"""
VECTORS = """
{v} * {u} | torch.tanh({v}) | {v}.exp() | {v}[None] | {v}.detach() | {v}.flip(0) | -{v} | {v} + {u} | {W}.sum(0)
{W}.mean(1) | {W}[0] | {W}[:, 0] | {W}[-1] | {W}.diagonal() | {W}.diag() | {v}.clamp(min=0.1) | 1 / ({v}.abs() + 1)
{W} @ {v} | {v}.view(1, -1) | torch.cat([{v}[:1], {v}[1:]]) | torch.softmax({v}, 0) | {W}.select(1, 0) | {v}.clone()
{v}.repeat(2)[:{r}] | {W}.flatten()[:{r}] | {W}.T[0]
"""
MATRICES = """
{W} + {X} | 2 * {W} | torch.tanh({W}) | {W}.detach() | {W}.t() | {W} @ {X} | {W} - torch.diag({W}.diagonal())
{W}.flip(0) | {W}.T.contiguous() | torch.outer({v}, {u}) | {W} * {v} | {W} * {v}[:, None] | {W}.triu()
({W} + {W}.t()) / 2 | {W}.abs() | {W} * (1 - torch.eye({r}, dtype={W}.dtype)) | torch.cat([{W}[:1], {X}[1:]])
torch.cat([{W}[:, :1], {X}[:, 1:]], 1) | {W}.reshape(-1, {r}) | {W} / ({W}.norm() + 1) | {W}.roll(1, 0)
{v}.expand({r}, {r}) | torch.diag({v}) | {W} * {X} | {W}.clone() | torch.linalg.matrix_exp(0.3 * {W})
{W}.expand(2, -1, -1)[1] | {W}[:, range({r})] | {W}[None][0]
"""
ENDS = """
torch.tanh({a}) | torch.tanh({a}) | torch.tanh({a} + {b}) | torch.tanh(F.linear({a}, {W}) + {b})
{q} * {a} + {q} * torch.tanh({b}) | {a} | {a} | {a} | torch.sigmoid({a}) * torch.tanh({b}) | {q} * {a} | {a} * {b}
{a} * {b} + {c} | torch.tanh({a}) * {b} + {c} | {a} + {v} | {v} * {a} | F.linear({a}, {W})
{a} * {b} + F.linear({c}, {W}, {v}) | torch.relu({a})
"""
RARE_ENDS = """
{a}.detach() | torch.zeros_like({a}) | torch.full_like({a}, {n}) | torch.tanh({a}.detach() + {b}) | {a}.clone()
{a} + 0 | torch.tanh({v}) + 0 * {a}
"""
NUMBERS = {
    "n": (-1.5, -1.0, -0.7, -0.2, 0.3, 0.5, 0.9, 1.25, 2.0, 1, 2, -3),
    "p": (0.2, 0.5, 0.8, 1.5),
    "q": (0.2, 0.5, 0.8),
}


def _listed(text: str) -> list[str]:
    return [one for line in text.strip().splitlines() for one in line.split(" | ")]


NAMES = ("PLAIN", "BEYOND", "IN_PLACE", "VECTORS", "MATRICES", "ENDS", "RARE_ENDS")
TABLES = {name: _listed(globals()[name]) for name in NAMES}


class Draft:
    """A cell while it is written: tiles that there are, and tensors as they are asked for."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(f"cell {seed}")
        self.tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        self.tiles: list[tuple[str, int]] = []
        self.unread: set[str] = set()
        self.lines: list[str] = []
        self.named = 0

    def chance(self, share: float) -> bool:
        return self.draw.random() < share

    def tensor(self, shape: tuple[int, ...], role: str = "trained") -> str:
        """A tensor of this shape: often one that there is, so that some are read many times."""
        same = [name for name, kind in self.tensors.items() if kind == (role, shape)]
        if same and self.chance(0.65):
            return self.draw.choice(same)
        name = f"w{len(self.tensors)}"
        self.tensors[name] = (role, shape)
        return name

    def vector(self, size: int, *, plain: bool = False) -> str:
        if plain or self.chance(0.8):
            return self.tensor((size,), self.draw.choice(["trained"] * 6 + ["fixed"]))
        if self.chance(0.2):
            return f"{self.tensor((3, size))}[{self.draw.randrange(-2, 3)}]"
        return f"({self.fill(self.draw.choice(TABLES['VECTORS']), size, plain=True)})"

    def matrix(self, to: int, size: int, *, plain: bool = False) -> str:
        """An expression of params of this shape (to, from)."""
        if plain or self.chance(0.6):
            return self.tensor((to, size), self.draw.choice(["trained"] * 9 + ["fixed"]))
        kind = self.draw.randrange(8)
        if to == size and kind < 3:
            return f"({self.fill(self.draw.choice(TABLES['MATRICES']), size, plain=True)})"
        low = self.draw.randrange(3)
        made = [
            f"{self.tensor((3, to, size))}[{low}]",
            f"({self.tensor((to, size))} * {self.tensor((to, size), 'mask')})",
            f"{self.tensor((size, to))}.t()",
            f"{self.tensor((to + 2, size))}[{low}:{low + to}]",
            f"{self.tensor((to, size + 2))}[:, {low}:{low + size}]",
            f"({self.tensor((to, size))} + {self.tensor((to, size))})",
            f"torch.cat([{self.tensor((to, 1))}, {self.tensor((to, size))}], 1)[:, :{size}]",
            f"{self.tensor((2 * to, size))}[{'::2' if low else ':-' + str(to)}]",
        ]
        return made[kind]

    def tile(self, size: int | None = None, *, recent: float = 0.6) -> tuple[str, int]:
        """A tile, of some size if given; made if there is none."""
        fitting = [one for one in self.tiles if size in (None, one[1])]
        if not fitting or (size is not None and self.chance(0.04)):
            return self.resized(size or 1)
        unread = [one for one in fitting if one[0] in self.unread]
        if unread and self.chance(recent):
            fitting = unread
        made = self.draw.choice(fitting[-5:] if self.chance(recent) else fitting)
        self.unread.discard(made[0])
        return made

    def line(self, text: str, size: int) -> tuple[str, int]:
        """A new tile, written as a line."""
        self.named += 1
        self.lines.append(f"t{self.named} = {text}")
        self.unread.add(f"t{self.named}")
        self.tiles.append((f"t{self.named}", size))
        return self.tiles[-1]

    def resized(self, size: int) -> tuple[str, int]:
        """Some tile brought to this size."""
        tile, found = self.tile()
        if found > size and self.chance(0.4):
            low = self.draw.randrange(found - size + 1)
            high = str(low + size) if low + size < found or self.chance(0.5) else ""
            narrow = f"{tile}.narrow(1, {low}, {size})" if self.chance(0.3) else f"{tile}[:, {low or ''}:{high}]"
            return self.line(narrow, size)
        if found < size and self.chance(0.3):
            other, _ = self.tile(size - found)
            return self.line(f"torch.cat([{tile}, {other}], {self.draw.choice([1, -1])})", size)
        bias = f", {self.vector(size)}" if self.chance(0.5) else ""
        return self.line(f"F.linear({tile}, {self.matrix(size, found)}{bias})", size)

    def fill(self, template: str, size: int, *, plain: bool = False) -> str:
        """A template with tiles, params and numbers of this size in place of its letters."""
        kept: dict[str, str] = {}

        def one(match: re.Match[str]) -> str:
            letter = match[1]
            if letter in NUMBERS:
                return str(self.draw.choice(NUMBERS[letter]))
            if letter == "r":
                return str(size)
            if letter not in kept:
                if letter in "abcd":
                    kept[letter] = self.tile(size)[0]
                elif letter in "vu":
                    kept[letter] = self.vector(size, plain=plain)
                elif letter in "WX":
                    kept[letter] = self.matrix(size, size, plain=plain)
                else:
                    self.named += 1
                    kept[letter] = f"t{self.named}"
            return kept[letter]

        return re.sub(r"{(\w)}", one, template)

    def operation(self) -> None:
        """One or several lines more."""
        kind = self.draw.random()
        _, size = self.tile()
        if kind < 0.7:
            self.line(self.fill(self.draw.choice(TABLES["PLAIN"]), size), size)
        elif kind < 0.78:
            self.resized(self.draw.choice([1, 2, 3, 4, 5, 6, 7]))
        elif kind < 0.86:
            self.pieces()
        elif kind < 0.93:
            self.gates()
        elif kind < 0.97:
            parts = [self.tile() for _ in range(self.draw.randrange(2, 4))]
            self.line(f"torch.cat([{', '.join(name for name, _ in parts)}], dim=1)", sum(rows for _, rows in parts))
        else:
            self.long_sum(size)

    def pieces(self) -> None:
        """A value cut into several."""
        tile, size = self.tile()
        if size == 1:
            return
        if size % 2 == 0 and self.chance(0.7):
            self._unpack(f"{tile}.chunk(2, dim={self.draw.choice([1, -1])})", [size // 2] * 2)
        elif self.chance(0.15):
            low = self.draw.randrange(1, size)
            self._unpack(f"{tile}.split([{low}, {size - low}], dim=1)", [low, size - low])
        else:
            step = self.draw.randrange(1, size)
            sizes = [min(step, size - low) for low in range(0, size, step)]
            self._unpack(f"{tile}.split({step}, {self.draw.choice([1, -1])})", sizes)

    def gates(self) -> None:
        """All gates by one product of a tensor of gates, then each by its function."""
        (tile, found), size = self.tile(), self.draw.choice([rows for _, rows in self.tiles])
        made = self.line(f"F.linear({tile}, {self.tensor((3, size, found))}.flatten(0, 1))", 3 * size)[0]
        if self.chance(0.4):
            other, rows = self.tile()
            made = self.line(f"{made} + F.linear({other}, {self.tensor((3, size, rows))}.flatten(0, 1))", 3 * size)[0]
        names = self._unpack(f"{made}.chunk(3, dim=1)", [size] * 3)
        for name in names[:2]:
            self.line(f"{self.draw.choice(['torch.sigmoid', 'torch.tanh'])}({name})", size)

    def _unpack(self, text: str, sizes: list[int]) -> list[str]:
        names = [f"t{self.named + place}" for place in range(1, len(sizes) + 1)]
        self.named += len(sizes)
        self.lines.append(f"{', '.join(names)}{',' if len(names) == 1 else ''} = {text}")
        self.unread |= set(names)
        self.tiles += zip(names, sizes, strict=True)
        return names

    def long_sum(self, size: int) -> None:
        """A sum of up to 45 products."""
        parts = []
        for _ in range(self.draw.choice([3, 5, 11, 12, 13, 14, 20, 45])):
            tile, rows = self.tile(recent=0.1)
            parts.append(f"F.linear({tile}, {self.matrix(size, rows)})")
        self.line(" + ".join(parts), size)

    def beyond(self) -> None:
        """Something that the engine may refuse."""
        _, size = self.tile()
        if self.chance(0.15):
            text = self.fill(self.draw.choice(TABLES["IN_PLACE"]), size)
            self.lines += text.split("; ")
            self.tiles.append((f"t{self.named}", size))
        else:
            self.line(self.fill(self.draw.choice(TABLES["BEYOND"]), size), size)


def drawn(seed: int) -> Cell:
    """The cell of a seed."""
    draft = Draft(seed)
    draw = draft.draw
    sizes = draw.sample([1, 2, 3, 4, 5, 7, 8, draw.choice([9, 17, 33])], draw.choice([1, 1, 2, 3]))
    states = tuple((f"h{place}", draw.choice(sizes)) for place in range(draw.choice([1, 1, 2, 2, 3, 4])))
    noises = (("e", draw.choice(sizes)),) if draft.chance(0.2) else ()
    input_size = draw.choice([1, 2, 3, 5, sizes[0]])
    draft.tiles = [("x", input_size), *noises, *states]
    count = draw.choice([1, 2, 2, 3, 3, 4, 5, 6, 9])
    strange = {draw.randrange(count) for _ in range(draw.choice([1, 1, 2]))} if draft.chance(0.3) else set()
    for place in range(count):
        draft.beyond() if place in strange else draft.operation()
    after = _ends(draft, states)
    body, draft.lines = tuple(draft.lines), []
    reading, answer, output_size = _answer(draft, states)
    first = tuple(_first(draft, size) for _, size in states) if draft.chance(0.4) else ()
    tensors = tuple((name, role, shape) for name, (role, shape) in draft.tensors.items())
    if not tensors:
        tensors = (("w0", "trained", (2,)),)
    return Cell(
        input_size=input_size, output_size=output_size, states=states, tensors=tensors, after=after, answer=answer,
        body=body, noises=noises, reading=reading, first=first,
    )  # fmt: skip


def _ends(draft: Draft, states: tuple[tuple[str, int], ...]) -> tuple[str, ...]:
    """What each state becomes."""
    ends: list[str] = []
    for place, (_, size) in enumerate(states):
        same = [ends[other] for other in range(place) if states[other][1] == size]
        if same and draft.chance(0.1):
            ends.append(draft.draw.choice(same))
        elif place + 1 < len(states) and states[place + 1][1] == size and draft.chance(0.12):
            wide, _ = draft.tile(2 * size)
            draft._unpack(f"{draft.draw.choice([wide, f'torch.tanh({wide})'])}.chunk(2, dim=1)", [size] * 2)
            ends.append(draft.tiles[-2][0])
        elif draft.chance(0.15):
            ends.append(draft.tile(size, recent=0)[0])
        else:
            ends.append(draft.fill(draft.draw.choice(TABLES["RARE_ENDS" if draft.chance(0.06) else "ENDS"]), size))
    return tuple(ends)


def _answer(draft: Draft, states: tuple[tuple[str, int], ...]) -> tuple[tuple[str, ...], str, int]:
    """The lines of the read-out, its result and the result's size."""
    draw = draft.draw
    draft.tiles = list(states)
    strange = draft.chance(0.05)
    for _ in range(draw.choice([0, 0, 0, 0, 1, 2])):
        draft.operation()
    if strange:
        draft.beyond()
    tile, size = draft.tile()
    kind = draw.random()
    output_size = draw.choice([1, 2, 4, 6])
    if kind < 0.55:
        bias = f", {draft.vector(output_size)}" if draft.chance(0.5) else ""
        answer = f"F.linear({tile}, {draft.matrix(output_size, size)}{bias})"
    elif kind < 0.75:
        answer, output_size = tile, size
    elif kind < 0.83:
        (one, rows), (other, more) = draft.tile(), draft.tile()
        answer, output_size = f"torch.cat([{one}, {other}], 1)", rows + more
    elif kind < 0.97:
        parts = [draft.tile() for _ in range(draw.choice([2, 3, 13]))]
        answer = " + ".join(f"F.linear({name}, {draft.matrix(output_size, rows)})" for name, rows in parts)
    elif kind < 0.98:
        answer = f"{tile}.new_zeros({tile}.shape[0], {output_size})"
    else:
        answer, output_size = f"torch.tanh({tile}) * {draft.vector(size)}", size
    return tuple(draft.lines), answer, output_size


def _first(draft: Draft, size: int) -> str:
    """A state before the first step."""
    kind = draft.draw.random()
    if kind < 0.3:
        return f"start.new_zeros(start.shape[0], {size})"
    if kind < 0.5:
        return f"start.new_full((len(start), {size}), {draft.draw.choice(NUMBERS['n'])})"
    if kind < 0.75:
        return f"torch.tanh({draft.vector(size)}).expand(len(start), {size})"
    if kind < 0.9:
        return f"start @ {draft.tensor((2, size))}"
    return f"{draft.vector(size, plain=True)}.expand(len(start), {size}).clone()"
