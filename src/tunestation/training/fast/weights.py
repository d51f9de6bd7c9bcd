"""What the products of a projection read: base weights and adapters, written into a buffer in one launch, or adapters of all layers."""

from __future__ import annotations

from functools import cached_property
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

from tunestation.training.fast import nf4

if TYPE_CHECKING:
    from tunestation.training.fast.launches import Repeatable


class Member:
    """One linear layer, as peft wraps it or bare.

    Its modules are looked up once, and their tensors in the shortest way, as torch's usual one takes the host longer than a small product
    takes a GPU. Tensors are looked up each time: others may take their place.
    """

    def __init__(self, module: nn.Module):
        adapted = hasattr(module, "lora_A")
        self.base: nn.Module = getattr(module, "base_layer", module)
        """The layer under the adapter."""
        self.lora: tuple[nn.Module, nn.Module] | None = (module.lora_A["default"], module.lora_B["default"]) if adapted else None
        """The modules of A and B."""
        self.scale: float = float(module.scaling["default"]) if adapted else 0.0
        """alpha / rank."""
        self.dropout: float = getattr(module.lora_dropout["default"], "p", 0.0) if adapted else 0.0
        """Probability on the adapter's input."""

    @property
    def adapter(self) -> tuple[nn.Parameter, nn.Parameter] | None:
        """A [r, K] and B [N, r]; None where nothing was adapted."""
        return self.lora and (self.lora[0]._parameters["weight"], self.lora[1]._parameters["weight"])

    def read(self, out: torch.Tensor) -> None:
        """Write the base weights to `out` [N, K]."""
        weight = self.base.weight
        if hasattr(weight, "quant_state"):
            nf4.dequantise(weight, out)
        else:
            out.copy_(weight)


class Addresses(NamedTuple):
    """Where all parts of a projection's weights are."""

    found: list[int]
    wide: bool
    """Whether adapters are in 32 bits."""
    table: torch.Tensor
    """`found` on the GPU."""


class Buffer:
    """Weights and adapters of a projection in `flat`, and what products read of them; without `base` the adapters alone."""

    def __init__(self, flat: torch.Tensor, outputs: int, columns: int, rank: int, base: bool):
        if base:
            whole = flat.view(outputs + rank, columns + rank)
            self.forward = whole[:outputs].t()
            """[K + R, N]: a product with rows [x | xA']."""
            self.base, self.backward = whole[:outputs, :columns], whole[:, :columns]
            """[N, K] and [N + R, K]: products with rows dy and [dy | dy sB]."""
            self.a, self.b = whole[outputs:, :columns], whole[:outputs, columns:]
        else:
            self.a, self.b = flat[: rank * columns].view(rank, columns), flat[rank * columns :].view(outputs, rank)
        self.a: torch.Tensor
        """[R, K]: all A."""
        self.a_turned = self.a.t()
        self.b: torch.Tensor
        """[N, R]: sB, block-diagonal."""
        self.launches: dict[tuple[Filling, bool], Launch] = {}
        """What writes here, for each filling, with or without base weights."""

    @staticmethod
    def numbers(outputs: int, columns: int, rank: int, base: bool) -> int:
        """How many it holds."""
        return (outputs + rank) * (columns + rank) if base else rank * (outputs + columns)


class Scratch:
    """One buffer for the weights of whichever projection runs, as large as the largest needs."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Give the memory back."""
        self.flat: torch.Tensor | None = None
        self.laid: dict[tuple[int, int, int, bool], Buffer] = {}

    def buffer(self, like: torch.Tensor, *shape: int) -> Buffer:
        """Uninitialised, of `like`'s dtype and device, `shape` as `Buffer` takes it; whatever it held before is gone."""
        numbers = Buffer.numbers(*shape)
        if self.flat is None or self.flat.numel() < numbers or self.flat.dtype != like.dtype:
            self.forget()
            self.flat = like.new_empty(numbers)
        if shape not in self.laid:
            self.laid[shape] = Buffer(self.flat[:numbers], *shape)
        return self.laid[shape]


class Filling:
    """Writes the weights of a projection's `members` into buffers; without `base` their adapters alone.

    `paired`: the outputs of two members of one size lie in turn, one of the first, one of the second.
    """

    def __init__(self, members: list[Member], base: bool, paired: bool = False):
        self.members, self.base, self.paired = members, base, paired
        self.columns = members[0].base.in_features
        self.sizes = [member.base.out_features for member in members]
        self.ranks = [member.adapter[0].shape[0] if member.adapter else 0 for member in members]
        self.scales = [member.scale for member in members]
        self.shape = sum(self.sizes), self.columns, sum(self.ranks), base
        """As `Buffer` takes it."""
        self.even = all(size * self.columns % 4096 == 0 for size in self.sizes)
        """Whether the pieces of 4096 weights that one launch writes end where members end."""
        outputs = [slice(first, None, 2) for first in range(2)] if paired else _slices(self.sizes)
        self.parts = list(zip(outputs, _slices(self.ranks), strict=True))
        """Where each member's outputs and ranks lie among those of all."""
        self.addresses: Addresses | None = None
        self.known = False
        """Whether weights still are where they were, so that the host need not ask each of them."""
        self.written = False
        """Whether the buffer that is held ready has the present adapters already."""
        self.at_once = True
        """Whether one launch may write a buffer: what `agrees` has found."""

    @property
    def kind(self) -> tuple:
        """What fillings have in common that one launch can write adapters for."""
        wide = tuple(member.lora and member.adapter[0].dtype for member in self.members)
        return self.shape, *map(tuple, (self.sizes, self.ranks, self.scales)), wide, self.paired

    def fill(self, buffer: Buffer, base: bool) -> None:
        """Write adapters, and with `base` the base weights too; on a GPU in one launch, for which small batches would wait else."""
        if self.at_once and self.possible(buffer.b, base):
            self._at_once(buffer, base)
        else:
            self._singly(buffer, base)

    def possible(self, like: torch.Tensor, base: bool) -> bool:
        """Whether the kernel knows such weights."""
        return like.is_cuda and like.dtype == torch.bfloat16 and (not base or (self.four_bit and self.even))

    @torch.no_grad()
    def agrees(self, like: torch.Tensor) -> bool:
        """Whether one launch writes, on this GPU and with this compiler, what single copies write: all, and adapters alone."""
        return all(self._agrees(like, base) for base in {self.base, False} if self.possible(like, base))

    def _agrees(self, like: torch.Tensor, base: bool) -> bool:
        flats = like.new_zeros(2, Buffer.numbers(*self.shape))
        once, singly = (Buffer(flat, *self.shape) for flat in flats)
        self._singly(singly, base)
        self._at_once(once, base)
        if not torch.equal(*flats):
            return False
        flats[0].zero_()
        self._at_once(once, base)  # which by now is the same launch made again
        return torch.equal(*flats)

    @cached_property
    def four_bit(self) -> bool:
        """Whether the base is NF4, as known when weights are first read."""
        return self.base and all(nf4.supported(member.base.weight) for member in self.members)

    @cached_property
    def nested(self) -> bool:
        """Whether scales of 4-bit weights are themselves quantised."""
        return self.four_bit and self.members[0].base.weight.quant_state.nested

    def _at_once(self, buffer: Buffer, base: bool) -> None:
        if (self, base) not in buffer.launches:
            buffer.launches[self, base] = Launch([self], base)
        buffer.launches[self, base]([buffer])

    def look_up(self, device: torch.device) -> Addresses:
        """Where weights are; the same object as long as that is the same."""
        if not self.known:
            found = [address for member in self.members for address in _addresses(member, self.four_bit)]
            wide = any(member.adapter[0].dtype == torch.float32 for member in self.members if member.lora)
            if self.addresses is None or self.addresses[:2] != (found, wide):
                self.addresses = Addresses(found, wide, torch.tensor(found, device=device))
            self.known = True
        return self.addresses

    def _singly(self, buffer: Buffer, base: bool) -> None:
        if len(self.members) > 1:
            buffer.b.zero_()
        for member, (outputs, ranks) in zip(self.members, self.parts, strict=True):
            if base:
                member.read(buffer.base[outputs])
            if member.lora:
                a, b = member.adapter
                buffer.a[ranks].copy_(a)
                torch.mul(b, member.scale, out=buffer.b[outputs, ranks])


class Launch:
    """Writes the adapters of fillings that are alike but for their weights to a buffer each, or with `base` all of a single one.

    It is made again as it was as long as weights lie where they lay, and is called with the same buffers each time. It does not hold
    them: a buffer holds its launches, and whoever lets go of it wants its memory at once.
    """

    def __init__(self, fillings: list[Filling], base: bool):
        self.fillings, self.base = fillings, base
        self.found: list[Addresses] = []
        self.again: Repeatable | None = None

    def __call__(self, buffers: list[Buffer]) -> None:
        found = [filling.look_up(buffers[0].b.device) for filling in self.fillings]
        if len(found) != len(self.found) or any(one is not other for one, other in zip(found, self.found, strict=True)):
            self.again, self.found = self._made(found, buffers), found
        elif self.again is not None:
            self.again()

    def _made(self, found: list[Addresses], buffers: list[Buffer]) -> Repeatable | None:
        from tunestation.training.fast import product_kernels

        (first, *_), (_, wide, table), like = self.fillings, found[0], buffers[0]
        members = first.sizes, first.ranks, first.scales
        if self.base:
            return product_kernels.fill(table, like, *members, first.nested, wide, first.paired)
        targets = torch.tensor([[buffer.b.data_ptr(), buffer.a.data_ptr()] for buffer in buffers], device=like.b.device)
        return product_kernels.fill_adapters(torch.stack([each.table for each in found]), targets, like, *members, wide, first.paired)


class Together:
    """The adapters of all layers' fillings that are held ready and alike, written in one launch at the beginning of a micro-batch.

    In a step of a small model a launch takes as long as what it writes.
    """

    def __init__(self) -> None:
        self.fillings: list[Filling] = []
        self.buffers: list[Buffer] = []
        self.launch = Launch(self.fillings, base=False)

    @staticmethod
    def of(ready: list[tuple[Filling, Buffer]]) -> list[Together]:
        """One for each kind of those that one launch may write."""
        kinds: dict[tuple, Together] = {}
        for filling, buffer in ready:
            if filling.at_once and filling.possible(buffer.b, False):
                group = kinds.setdefault(filling.kind, Together())
                group.fillings.append(filling)
                group.buffers.append(buffer)
        return list(kinds.values())

    @torch.no_grad()
    def agrees(self) -> bool:
        """Whether it writes, on this GPU and with this compiler, what single copies write."""
        self.launch(self.buffers)
        return all(map(_has_adapters, self.fillings, self.buffers))

    def write(self) -> None:
        """The present adapters to all buffers."""
        self.launch(self.buffers)
        for filling in self.fillings:
            filling.written = True


def _has_adapters(filling: Filling, buffer: Buffer) -> bool:
    """Whether `buffer` holds what single copies write."""
    shape = *filling.shape[:3], False
    wanted = Buffer(buffer.b.new_zeros(Buffer.numbers(*shape)), *shape)
    filling._singly(wanted, False)
    return torch.equal(buffer.a, wanted.a) and torch.equal(buffer.b, wanted.b)


def _slices(sizes: list[int]) -> list[slice]:
    """Where pieces of these sizes lie, one behind the other."""
    return [slice(start, end) for start, end in pairwise(accumulate(sizes, initial=0))]


def _addresses(member: Member, four_bit: bool) -> list[int]:
    """Where the parts of a member's weights are: codes, their table, scales, the scales' table, scales and mean; A and B."""
    parts: tuple[torch.Tensor | None, ...] = (None,) * 6
    if four_bit:
        weight = member.base._parameters["weight"]
        state = weight.quant_state
        nested = state.state2
        parts = (weight, state.code, state.absmax, *((nested.code, nested.absmax, state.offset) if nested else (None,) * 3))
    with torch._C.DisableTorchFunctionSubclass():  # bitsandbytes' weights are asked ten times as fast
        return [0 if part is None else part.data_ptr() for part in (*parts, *(member.adapter or (None, None)))]
