"""Linear layers on the same input as one product, their adapters inside it.

With base weights W [N, K], adapters A [R, K] and B [N, R] (block-diagonal for several layers) and their scale s, one buffer holds

    [[W, sB],        and   y  = [x | xA'] [W | sB]'         is one product, as is
     [A, . ]]              dx = [dy | dy sB] [W ; A].

The rows of x and dy carry the adapter's few columns behind them, so no pass over y or dx is spent on adding the adapter's share.
A 4-bit base is dequantised straight into that buffer: one for all layers, or one each when memory is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from tunestation.training.fast import nf4, ops


@dataclass(frozen=True)
class Member:
    """One linear layer, as peft wraps it or bare."""

    module: nn.Module

    @property
    def base(self) -> nn.Module:
        """The layer under the adapter."""
        return getattr(self.module, "base_layer", self.module)

    @property
    def adapter(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        """A [r, K] and B [N, r]; None where nothing was adapted."""
        if not hasattr(self.module, "lora_A"):
            return None
        return self.module.lora_A["default"].weight, self.module.lora_B["default"].weight

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return self.module.scaling["default"]

    @property
    def dropout(self) -> float:
        """Probability on the adapter's input."""
        return getattr(self.module.lora_dropout["default"], "p", 0.0) if self.adapter else 0.0

    def read(self, out: torch.Tensor) -> None:
        """Write the base weights to `out` [N, K]."""
        weight = self.base.weight
        if hasattr(weight, "quant_state"):
            nf4.dequantise(weight, out)
        else:
            out.copy_(weight)


class Scratch:
    """One buffer for the weights of whichever projection runs, as large as the largest needs."""

    def __init__(self) -> None:
        self.flat: torch.Tensor | None = None

    def shaped(self, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised [rows, columns] of `like`'s dtype and device; whatever it held before is gone."""
        if self.flat is None or self.flat.numel() < rows * columns or self.flat.dtype != like.dtype:
            self.flat = like.new_empty(rows * columns)
        return self.flat[: rows * columns].view(rows, columns)


class Projection:
    """Layers on one input; `forward` and `backward` leave the elementwise work around them to the decoder layer."""

    def __init__(self, modules: list[nn.Module], scratch: Scratch):
        self.members = [Member(module) for module in modules]
        self.scratch = scratch
        self.kept: torch.Tensor | None = None
        self.columns = self.members[0].base.in_features
        self.sizes = [member.base.out_features for member in self.members]
        self.ranks = [member.adapter[0].shape[0] if member.adapter else 0 for member in self.members]
        self.outputs, self.rank = sum(self.sizes), sum(self.ranks)
        self.p = max(member.dropout for member in self.members)
        self.addresses: tuple[list[int], torch.Tensor] | None = None
        self.at_once = True

    @property
    def adapters(self) -> list[nn.Parameter]:
        """A, B of each adapted member, in order."""
        return [weight for member in self.members if member.adapter for weight in member.adapter]

    def input(self, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised rows [T, K + R]; the input belongs in the first K columns."""
        return like.new_empty(len(like), self.columns + self.rank)

    def gradient(self, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised rows [T, N + R]; the output's gradient belongs in the first N columns."""
        return like.new_empty(self.gradient_shape(like))

    def gradient_shape(self, like: torch.Tensor) -> tuple[int, int]:
        """Of `gradient`."""
        return len(like), self.outputs + self.rank

    def eight(self, rows: torch.Tensor, columns: int) -> ops.Eight | None:
        """Where whoever writes the first `columns` of `rows` shall write them in 8 bits as well."""
        return None

    @torch.no_grad()
    def keep_weights(self, like: torch.Tensor | None) -> None:
        """Hold the base weights ready in `like`'s dtype from now on; with None no longer."""
        self.kept = None
        if like is not None:
            self.kept = like.new_empty(self.outputs + self.rank, self.columns + self.rank)
            self._fill(self.kept, base=True)

    def forward(
        self,
        rows: torch.Tensor,
        seed: int | None,
        eight: ops.Eight | None = None,
        roomy: bool = False,
        added: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """y [T, N], plus `added`; completes `rows` with the adapter's share. `seed` None drops nothing; `eight` is what `eight` asked for.

        `roomy`: behind each row of y there is room for what `backward` adds, so that y's gradient can take y's place (see `widened`).
        """
        weights = self._weights(rows, refresh=True)
        self._share(rows, weights[self.outputs :, : self.columns], seed)
        bias, weight = self._bias(), weights[: self.outputs].t()
        out = self.gradient(rows)[:, : self.outputs] if roomy else rows.new_empty(len(rows), self.outputs)
        ops.product(rows, weight, out) if bias is None else torch.addmm(bias, rows, weight, out=out)
        return out if added is None else out.add_(added)

    def _share(self, rows: torch.Tensor, a: torch.Tensor, seed: int | None) -> None:
        """Complete `rows` with the adapter's share xA', `a` [R, K] being all A."""
        if self.rank:
            torch.mm(self._adapter_input(rows[:, : self.columns], seed), a.t(), out=rows[:, self.columns :])

    def _drops(self, seed: int | None) -> bool:
        return seed is not None and self.p > 0

    def widened(self, y: torch.Tensor) -> torch.Tensor:
        """Rows [T, N + R] for the gradient of a roomy `y`, in the same memory."""
        return y.as_strided((len(y), self.outputs + self.rank), y.stride())

    def backward(
        self, grads: torch.Tensor, seed: int | None, eight: ops.Eight | None = None, wanted: bool = True
    ) -> torch.Tensor | None:
        """dx [T, K] unless not `wanted`; completes `grads`, whose first N columns are dy, with the adapter's share."""
        weights = self._weights(grads, refresh=False)
        n, k = self.outputs, self.columns
        if self.rank:
            torch.mm(grads[:, :n], weights[:n, k:], out=grads[:, n:])
        if not wanted:
            return None
        apart = self.rank and self._drops(seed)
        dx = grads.new_empty(len(grads), k)
        ops.product(grads[:, :n] if apart else grads, weights[: n if apart else None, :k], dx)
        if apart:
            ops.add_low_rank(dx, grads[:, n:], weights[n:, :k].t(), 1.0, p=self.p, seed=seed)
        return dx

    def adapter_gradients(self, grads: torch.Tensor, x: torch.Tensor, tail: torch.Tensor, seed: int | None) -> list[torch.Tensor]:
        """Of `adapters`; `grads` as `backward` left it, `x` [T, K] the input, `tail` [T, R] its adapter's share."""
        if not self.rank:
            return []
        all_a = grads[:, self.outputs :].t() @ self._adapter_input(x, seed)
        found, row, rank = [], 0, 0
        for member, size, r in zip(self.members, self.sizes, self.ranks, strict=True):
            if r:
                a, b = member.adapter
                d_b = grads[:, row : row + size].t() @ tail[:, rank : rank + r]
                found += [all_a[rank : rank + r].to(a.dtype), d_b.mul_(member.scale).to(b.dtype)]
            row, rank = row + size, rank + r
        return found

    def _adapter_input(self, x: torch.Tensor, seed: int | None) -> torch.Tensor:
        if not self._drops(seed):
            return x
        dropped = torch.empty(x.shape, dtype=x.dtype, device=x.device)
        ops.dropout(x, self.p, seed, dropped)
        return dropped

    def _bias(self) -> torch.Tensor | None:
        biases = [member.base.bias for member in self.members]
        return torch.cat(biases) if biases[0] is not None else None

    def _weights(self, like: torch.Tensor, refresh: bool) -> torch.Tensor:
        """The whole buffer; without `refresh` a kept one still has the adapters of this micro-batch's forward pass."""
        if self.kept is None:
            weights = self.scratch.shaped(self.outputs + self.rank, self.columns + self.rank, like)
            self._fill(weights, base=True)
        else:
            weights = self.kept
            if refresh:
                self._fill(weights, base=False)
        return weights

    def _fill(self, weights: torch.Tensor, base: bool) -> None:
        """Write adapters, and with `base` the base weights too; on a GPU in one launch, for which small batches would wait else."""
        four_bit = all(nf4.supported(member.base.weight) for member in self.members)
        if self.at_once and weights.is_cuda and weights.dtype == torch.bfloat16 and (four_bit or not base) and self._even():
            return self._fill_at_once(weights, base, four_bit)
        if base:
            self._read_base(weights)
        self._read_adapters(weights)

    @torch.no_grad()
    def agrees(self, like: torch.Tensor) -> bool:
        """Whether one launch writes, on this GPU and with this compiler, what single copies write."""
        shape = (self.outputs + self.rank, self.columns + self.rank)
        one, other = like.new_zeros(shape), like.new_zeros(shape)
        self._fill(one, base=True)
        self._read_base(other)
        self._read_adapters(other)
        return torch.equal(one, other)

    def _even(self) -> bool:
        """Whether the kernel's pieces of 4096 weights end where members end."""
        return all(size * self.columns % 4096 == 0 for size in self.sizes)

    def _fill_at_once(self, weights: torch.Tensor, base: bool, four_bit: bool) -> None:
        from tunestation.training.fast import product_kernels

        found = [address for member in self.members for address in _addresses(member, four_bit)]
        if self.addresses is None or self.addresses[0] != found:
            self.addresses = found, torch.tensor(found, device=weights.device)
        nested = four_bit and self.members[0].base.weight.quant_state.nested
        scales = [member.scale if member.adapter else 0.0 for member in self.members]
        wide = any(weight.dtype == torch.float32 for weight in self.adapters)
        product_kernels.fill(self.addresses[1], weights, self.sizes, self.ranks, self.columns, scales, base, nested, wide)

    def _read_base(self, weights: torch.Tensor) -> None:
        row = 0
        for member, size in zip(self.members, self.sizes, strict=True):
            member.read(weights[row : row + size, : self.columns])
            row += size

    def _read_adapters(self, weights: torch.Tensor) -> None:
        if not self.rank:
            return
        if len(self.members) > 1:
            weights[: self.outputs, self.columns :].zero_()
        row, rank = 0, 0
        for member, size, r in zip(self.members, self.sizes, self.ranks, strict=True):
            if r:
                a, b = member.adapter
                weights[self.outputs + rank : self.outputs + rank + r, : self.columns].copy_(a)
                torch.mul(b, member.scale, out=weights[row : row + size, self.columns + rank : self.columns + rank + r])
            row, rank = row + size, rank + r


def _addresses(member: Member, four_bit: bool) -> list[int]:
    """Where the parts of a member's weights are: codes, their table, scales, the scales' table, scales and mean; A and B."""
    parts: list[torch.Tensor | None] = [None] * 6
    if four_bit:
        weight = member.base.weight
        state, nested = weight.quant_state, weight.quant_state.state2
        parts = [weight.data, state.code, state.absmax, *((nested.code, nested.absmax, state.offset) if nested else (None,) * 3)]
    return [0 if part is None else part.data_ptr() for part in (*parts, *(member.adapter or (None, None)))]
