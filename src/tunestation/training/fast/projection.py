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

from tunestation.training.fast import gated, ops
from tunestation.training.fast.adapters import Part
from tunestation.training.fast.dropping import Dropped
from tunestation.training.fast.weights import Buffer, Filling, Member, Scratch


@dataclass
class Input:
    """Room for what a projection reads: whoever makes it writes it to `x`, and to `eight` and `dropped` if they are there."""

    rows: torch.Tensor
    """[T, K + R]; `forward` writes the last R columns."""
    x: torch.Tensor
    """[T, K]: the first columns of `rows`."""
    eight: ops.Eight | None
    dropped: Dropped | None
    """What adapters read, if not x itself."""


class Projection:
    """Layers on one input; `forward` and `backward` leave the elementwise work around them to the decoder layer."""

    BASE = True
    """Whether products read the base weights from the buffer."""
    EIGHT = False
    """Whether products read their input in 8 bits."""

    def __init__(self, modules: list[nn.Module], scratch: Scratch, paired: bool = False):
        self.members = [Member(module) for module in modules]
        self.scratch = scratch
        self.ready: Buffer | None = None
        """Weights held ready; in a backward pass also the adapters of this micro-batch's forward pass."""
        self.filling = Filling(self.members, self.BASE, paired)
        self.outputs, self.columns, self.rank, _ = self.filling.shape
        self.adapted = [(*part, member.scale) for part, member in zip(self.filling.parts, self.members, strict=True) if member.lora]
        """Where outputs and ranks of adapted members lie among those of all, and the members' scales."""
        self.p = max(member.dropout for member in self.members)

    @property
    def paired(self) -> bool:
        """Whether outputs of two members, gate and up, lie in turn: what is made of them is then made inside of products."""
        return self.filling.paired

    @property
    def aligned(self) -> bool:
        """Whether all rows that products read and write here begin at multiples of 16 bytes in 16 bits."""
        return not any(size % 8 for size in (self.outputs, self.columns, self.rank))

    @property
    def direct(self) -> bool:
        """Whether attention may write to where products read here: rows are `aligned`, and are not copied anyway, in 8 bits."""
        return self.aligned and not self.EIGHT

    def input(self, like: torch.Tensor, seed: int | None) -> Input:
        """Room for an input of as many rows as `like`; `seed` None drops nothing."""
        rows = like.new_empty(like.size(0), self.columns + self.rank)
        return Input(rows, rows[:, : self.columns], self.eight(rows, self.columns), self._room(rows, seed))

    def _room(self, like: torch.Tensor, seed: int | None) -> Dropped | None:
        """For what adapters read of as many rows as `like`, if not the input itself."""
        return Dropped(like.new_empty(like.size(0), self.columns), self.p, seed) if self.drops(seed) else None

    def gradient(self, like: torch.Tensor) -> torch.Tensor:
        """Uninitialised rows [T, N + R]; the output's gradient belongs in the first N columns."""
        return like.new_empty(self.gradient_shape(like))

    def gradient_shape(self, like: torch.Tensor) -> tuple[int, int]:
        """Of `gradient`."""
        return like.size(0), self.outputs + self.rank

    def eight(self, rows: torch.Tensor, columns: int) -> ops.Eight | None:
        """Where whoever writes the first `columns` of `rows` shall write them in 8 bits as well."""
        return None

    @torch.no_grad()
    def keep_weights(self, like: torch.Tensor | None) -> None:
        """Hold the base weights ready in `like`'s dtype from now on; with None no longer."""
        self.ready = None
        if like is not None:
            self.ready = Buffer(like.new_empty(Buffer.numbers(*self.filling.shape)), *self.filling.shape)
            self.filling.fill(self.ready, base=True)

    def forward(
        self, read: Input, roomy: bool = False, added: torch.Tensor | None = None, keep: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """y [T, N], plus `added`; completes the rows of `read` with the adapter's share.

        `roomy`: behind each row of y there is room for what `backward` adds, so that y's gradient can take y's place (see `widened`).
        With `keep` also what adapters have read [T, K], which may be a view of these rows; None without adapters.
        """
        buffer, kept = self._begin(read, keep)
        return self._multiply(read, buffer, roomy, added), kept

    def forward_through(self, read: Input, out: torch.Tensor, keep: bool = False) -> tuple[torch.Tensor, torch.Tensor | None]:
        """As `forward`, roomy, where y is gate and up in turn; silu(gate) * up goes to `out` [T, N / 2] at once."""
        buffer, kept = self._begin(read, keep)
        y = self.gradient(read.rows)[:, : self.outputs]
        gated.product(read.rows, buffer.forward, y, out)
        return y, kept

    def _begin(self, read: Input, keep: bool) -> tuple[Buffer, torch.Tensor | None]:
        """The buffer, once rows have the adapter's share; with `keep` what adapters have read, whose memory is else free by then."""
        buffer = self._weights(read.rows, refresh=True)
        kept = self._share(read, buffer.a_turned) if self.rank else None
        return buffer, kept if keep else None

    def _multiply(self, read: Input, buffer: Buffer, roomy: bool, added: torch.Tensor | None) -> torch.Tensor:
        """y of completed rows."""
        rows, bias = read.rows, self._bias()
        out = self.gradient(rows)[:, : self.outputs] if roomy else rows.new_empty(rows.size(0), self.outputs)
        if bias is None:
            ops.product(rows, buffer.forward, out, added)
            return out
        torch.addmm(bias, rows, buffer.forward, out=out)
        return out if added is None else out.add_(added)

    def _share(self, read: Input, a_turned: torch.Tensor) -> torch.Tensor:
        """Complete the rows with the adapter's share xA', A' [K, R] being that of all; what adapters have read is handed over."""
        x = read.x if read.dropped is None else read.dropped.out
        read.dropped = None
        ops.product(x, a_turned, read.rows[:, self.columns :])
        return x

    def drops(self, seed: int | None) -> bool:
        """Whether what adapters read is another than what is multiplied."""
        return seed is not None and self.p > 0

    def widened(self, y: torch.Tensor) -> torch.Tensor:
        """Rows [T, N + R] for the gradient of a roomy `y`, in the same memory."""
        return y.as_strided((y.size(0), self.outputs + self.rank), y.stride())

    def backward(
        self, grads: torch.Tensor, seed: int | None, eight: ops.Eight | None = None, wanted: bool = True, begun: Buffer | None = None
    ) -> torch.Tensor | None:
        """dx [T, K] unless not `wanted`; completes `grads`, whose first N columns are dy, with the adapter's share.

        With `begun`, what `begin_backward` gave, they have that already.
        """
        buffer = self._complete(grads, wanted) if begun is None else begun
        return self._multiply_back(grads, buffer, seed, eight) if wanted else None

    def begin_backward(self, like: torch.Tensor, wanted: bool) -> Buffer:
        """The buffer that `backward` will read, of `like`'s dtype; the caller sees to the adapter's share."""
        return self._weights(like, refresh=False, base=wanted)

    def backward_through(
        self, grads: torch.Tensor, seed: int | None, gate_up: torch.Tensor, out: torch.Tensor, result: torch.Tensor | None
    ) -> None:
        """As `backward`, where x was silu(gate) * up: gradients of gate and up to `out`, x itself to `result`, as `gated.backward`."""
        buffer = self._complete(grads, True)
        if not (self.rank and self.drops(seed)):
            return gated.backward(grads, buffer.backward, gate_up, out, result)
        dy, tail = grads[:, : self.outputs], grads[:, self.outputs :]
        share = grads.new_empty(grads.size(0), self.columns) if result is None else result
        ops.dropped_low_rank(tail, buffer.a_turned, share, self.p, seed)
        gated.backward(dy, buffer.base, gate_up, out, result, share)

    def _complete(self, grads: torch.Tensor, base: bool) -> Buffer:
        """The buffer, once `grads` have the adapter's share."""
        buffer = self.begin_backward(grads, base)
        if self.rank:
            ops.product(grads[:, : self.outputs], buffer.b, grads[:, self.outputs :])
        return buffer

    def _multiply_back(self, grads: torch.Tensor, buffer: Buffer, seed: int | None, eight: ops.Eight | None) -> torch.Tensor:
        """dx of completed `grads`."""
        dx = grads.new_empty(grads.size(0), self.columns)
        if self.rank and self.drops(seed):
            dy, tail = grads[:, : self.outputs], grads[:, self.outputs :]
            ops.product(dy, buffer.base, dx)
            ops.add_low_rank(dx, tail, buffer.a_turned, p=self.p, seed=seed)
        else:
            ops.product(grads, buffer.backward, dx)
        return dx

    def adapter_gradients(self, grads: torch.Tensor, x: torch.Tensor, tail: torch.Tensor, out: Part) -> None:
        """To `out`; `grads` as `backward` left it, `x` [T, K] what they read, `tail` [T, R] their share."""
        if not self.rank:
            return
        ops.outer(grads[:, self.outputs :], x, out.a)
        if self.paired:
            return self._gradients_in_turn(grads, tail, out)
        for (outputs, ranks, scale), b in zip(self.adapted, out.b, strict=True):
            ops.outer(grads[:, outputs], tail[:, ranks], b, scale)

    def _gradients_in_turn(self, grads: torch.Tensor, tail: torch.Tensor, out: Part) -> None:
        """Those of all B by all ranks, of which half are wanted: a matrix library takes no columns that lie in turn."""
        every = out.a.new_empty(self.outputs, self.rank, dtype=torch.float32)  # so that what is scaled is not rounded before
        ops.outer(grads[:, : self.outputs], tail, every)
        for (outputs, ranks, scale), b in zip(self.adapted, out.b, strict=True):
            torch.mul(every[outputs, ranks], scale, out=b)

    def adapter_input(self, x: torch.Tensor, seed: int | None) -> torch.Tensor:
        """What adapters read of the input x [T, K]: itself, or with dropout."""
        room = self._room(x, seed)
        return x if room is None else room.draw(x)

    def draw(self, read: Input, seed: int | None) -> None:
        """What adapters read of `read.x`; `read` was made without room for it, so that less memory is taken while x is written."""
        read.dropped = self._room(read.x, seed)
        if read.dropped is not None:
            read.dropped.draw(read.x)

    def _bias(self) -> torch.Tensor | None:
        biases = [member.base.bias for member in self.members]
        return torch.cat(biases) if biases[0] is not None else None

    def _weights(self, like: torch.Tensor, refresh: bool, base: bool = True) -> Buffer:
        """The buffer; without `refresh` a kept one still has the adapters of this micro-batch's forward pass.

        Without `base` adapters alone are wanted.
        """
        buffer = self.ready or self.scratch.buffer(like, *self.filling.shape)
        if not self.ready or (refresh and not self.filling.written):
            self.filling.fill(buffer, base=base and self.BASE and not self.ready)
        return buffer
