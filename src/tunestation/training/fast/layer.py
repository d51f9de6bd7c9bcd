"""A decoder layer as one autograd function, forward and backward written out: it decides what is kept and what is computed again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import torch
from torch import nn

from tunestation.training.fast import ops
from tunestation.training.fast.attention import Documents, attend
from tunestation.training.fast.block import Block, Norm
from tunestation.training.fast.host import Inputs, Weights
from tunestation.training.fast.projection import Projection, Scratch


class Keep(IntEnum):
    """What a layer holds between forward and backward pass, from fastest to smallest."""

    MORE = -1
    """As ALL, and the inputs of products too: nothing is made again."""
    ALL = 0
    """Everything but what elementwise work makes again: inputs of norms, queries, keys, values, attention, gate and up."""
    ATTENTION = 1
    """All but gate and up: their product is computed again."""
    INPUT = 2
    """The layer's input alone; all but the last product is computed again."""


@dataclass(frozen=True)
class Given:
    """The gradient of a layer's input, as it is handed to the layer before."""

    rows: torch.Tensor
    """[T, K + R], with room for what that layer's last projection adds."""
    eight: ops.Eight | None
    """The same in 8 bits, for a projection that asks for it."""


@dataclass
class Step:
    """What all layers of a micro-batch share."""

    documents: Documents
    cos: torch.Tensor
    """[T, R // 2], as `sin`; R columns of a head turn."""
    sin: torch.Tensor
    seed: int | None
    """Of this micro-batch's dropout; None drops nothing."""
    inputs: Inputs
    """Where layers' inputs are between forward and backward pass."""
    weights: Weights | None
    """Those in host memory, which are brought before a layer runs."""
    given: Given | None = None
    """What the layer behind has handed on in this backward pass."""

    def bring(self, index: int, ahead: int) -> None:
        """See to it that layer `index` has its weights; the next to run is the one after it, or (`ahead` -1) before it."""
        if self.weights is not None:
            self.weights.take(index, ahead)


@dataclass
class Kept:
    """Activations of one layer; a tail is an input's adapter share xA' [T, R]."""

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    attention: torch.Tensor
    """[T, heads, size], with the graph back to q, k, v."""
    tail_qkv: torch.Tensor
    tail_o: torch.Tensor
    middle: torch.Tensor
    """Residual stream between attention and MLP [T, K]."""
    before_turning: torch.Tensor | None
    """[T, all heads, size], where queries and keys are normalised."""
    gate_up: torch.Tensor | None = None
    tail_gate_up: torch.Tensor | None = None
    tail_down: torch.Tensor | None = None
    x_qkv: torch.Tensor | None = None
    """Input [T, K] of the projection, as `x_gate_up` and `x_down`; only where nothing is made again."""
    x_gate_up: torch.Tensor | None = None
    x_down: torch.Tensor | None = None


class Layer:
    """Runs one decoder layer of a Llama-like model over the weights of its modules."""

    def __init__(self, block: Block, index: int, projection: type[Projection], scratch: Scratch):
        self.block, self.index = block, index
        self.qkv, self.o, self.gate_up, self.down = self.projections = [
            projection(modules, scratch) for modules in (block.qkv, block.o, block.gate_up, block.down)
        ]
        self.keep = Keep.ALL

    @property
    def adapters(self) -> list[nn.Parameter]:
        """All A and B of this layer, in the order of their gradients."""
        return [weight for projection in self.projections for weight in projection.adapters]

    def __call__(self, h: torch.Tensor, step: Step) -> torch.Tensor:
        """h [T, K] -> [T, K]."""
        return _Layer.apply(h, self, step, *self.adapters)

    def seeds(self, step: Step) -> list[int | None]:
        """Of the dropout before each projection."""
        first = len(self.projections) * self.index
        return [None if step.seed is None else (step.seed + first + place) % 2**31 for place in range(len(self.projections))]

    def attend(self, h: torch.Tensor, step: Step) -> tuple[Kept, tuple]:
        """The first half; also the rows that gate and up read, in 8 bits too where they ask for it."""
        seed, seed_o, _, _ = self.seeds(step)
        rows = self.qkv.input(h)
        eight = self.qkv.eight(rows, self.qkv.columns)
        normalise(self.block.norm1, h, rows[:, : self.qkv.columns], eight=eight)
        qkv = self.qkv.forward(rows, seed, eight).unflatten(1, (-1, self.block.size))
        x_qkv, tail = self._kept_rows(rows, self.qkv)
        q, k, v = (part.detach().requires_grad_() for part in self._turn(qkv, step))
        with torch.enable_grad():
            attention = attend(q, k, v, step.documents, self.block.scale)
        rows = self.o.input(h)
        ops.copy(attention.detach().flatten(1), rows[:, : self.o.columns])
        added, middle = self.o.forward(rows, seed_o), torch.empty_like(h)
        tail_o = rows[:, self.o.columns :].clone()  # its input, the attention, is kept anyway
        rows = self.gate_up.input(h)
        eight = self.gate_up.eight(rows, self.gate_up.columns)
        normalise(self.block.norm2, h, rows[:, : self.gate_up.columns], added, middle, eight)
        return Kept(q, k, v, attention, tail, tail_o, middle, qkv if self.block.head_norms else None, x_qkv=x_qkv), (rows, eight)

    def _kept_rows(self, rows: torch.Tensor, projection: Projection) -> tuple[torch.Tensor | None, torch.Tensor]:
        """What is kept of the completed `rows` that `projection` read: the input if it is not to be made again, and the tail."""
        x, tail = rows[:, : projection.columns], rows[:, projection.columns :]
        return (x, tail) if self.keep is Keep.MORE else (None, tail.clone())

    def _turn(self, qkv: torch.Tensor, step: Step) -> tuple[torch.Tensor, ...]:
        """q, k, v [T, heads, size] as attention takes them: in place, unless heads are normalised."""
        parts = qkv.split(self.block.heads, 1)
        if not self.block.head_norms:
            turned = qkv[:, : -self.block.heads[2]]
            ops.rotate(turned, step.cos, step.sin, turned)
            return parts
        turned = qkv.new_empty(len(qkv), sum(self.block.heads[:2]), self.block.size).split(self.block.heads[:2], 1)
        for norm, part, out in zip(self.block.head_norms, parts, turned, strict=False):
            ops.norm_rotate(part, norm.weight, norm.eps, step.cos, step.sin, out)
        return *turned, parts[2]

    def _turn_back(self, d_q: torch.Tensor, d_k: torch.Tensor, kept: Kept, step: Step, out: torch.Tensor) -> None:
        """The gradients of `_turn`'s q and k to `out` [T, all heads, size]."""
        parts = out.split(self.block.heads, 1)
        if not self.block.head_norms:
            for gradient, part in zip((d_q, d_k), parts, strict=False):
                ops.rotate(gradient, step.cos, step.sin, part, sign=-1)
            return
        before = kept.before_turning.split(self.block.heads, 1)
        for norm, gradient, x, part in zip(self.block.head_norms, (d_q, d_k), before, parts, strict=False):
            ops.norm_rotate_backward(gradient, x, norm.weight, norm.eps, step.cos, step.sin, part)

    def expand(self, kept: Kept, read: tuple, step: Step) -> None:
        """Gate and up from what they read."""
        rows, eight = read
        kept.gate_up = self.gate_up.forward(rows, self.seeds(step)[2], eight, roomy=True)
        kept.x_gate_up, kept.tail_gate_up = self._kept_rows(rows, self.gate_up)

    def contract(self, kept: Kept, step: Step) -> torch.Tensor:
        """The layer's result from gate and up."""
        rows = self.down.input(kept.middle)
        eight = self.down.eight(rows, self.down.columns)
        ops.glu(kept.gate_up, rows[:, : self.down.columns], self.block.gelu, eight)
        result = self.down.forward(rows, self.seeds(step)[3], eight, added=kept.middle)
        x, kept.tail_down = self._kept_rows(rows, self.down)
        # torch's activation on a CPU rounds otherwise than the one that is made again with its slope
        kept.x_down = x if rows.is_cuda else None
        return result

    def again(self, h: torch.Tensor, kept: Kept, step: Step) -> Kept:
        """`kept` completed by what this layer's `keep` left out."""
        if self.keep in (Keep.MORE, Keep.ALL):
            return kept
        tail_down = kept.tail_down
        if self.keep is Keep.INPUT:
            kept, read = self.attend(h, step)
        else:
            rows = self.gate_up.input(h)
            read = rows, self.gate_up.eight(rows, self.gate_up.columns)
            normalise(self.block.norm2, kept.middle, rows[:, : self.gate_up.columns], eight=read[1])
        self.expand(kept, read, step)
        kept.tail_down = tail_down
        return kept

    def left_out(self, kept: Kept) -> Kept:
        """`kept` without what is computed again."""
        if self.keep is Keep.INPUT:
            return Kept(*[None] * 8, tail_down=kept.tail_down)
        return replace(kept, gate_up=None, tail_gate_up=None) if self.keep is Keep.ATTENTION else kept

    def backward(self, h: torch.Tensor, kept: Kept, step: Step, d_out: torch.Tensor, wanted: bool) -> tuple:
        """(dh or None, gradients of `adapters`)."""
        d_middle, d_mlp = self._backward_mlp(kept, step, self._given(step, d_out))
        dh, d_attention = self._backward_attention(h, kept, step, d_middle, wanted)
        return dh, [*d_attention, *d_mlp]

    def _given(self, step: Step, d_out: torch.Tensor) -> Given:
        """The gradient of the layer's result, as the layer behind has left it; only that of the last layer is copied."""
        given, step.given = step.given, None
        if given is not None and given.rows.data_ptr() == d_out.data_ptr() and given.rows.shape == self.down.gradient_shape(d_out):
            return given
        rows = self.down.gradient(d_out)
        ops.copy(d_out, rows[:, : self.down.outputs])
        return Given(rows, None)

    def _backward_mlp(self, kept: Kept, step: Step, given: Given) -> tuple[Given, list[torch.Tensor]]:
        """Gradient of `middle` in the rows that the attention's last projection reads, and of the MLP's adapters."""
        _, _, seed, seed_down = self.seeds(step)
        d_act = self.down.backward(given.rows, seed_down, given.eight)
        grads = self.gate_up.widened(kept.gate_up)
        eight, made = self.gate_up.eight(grads, self.gate_up.outputs), kept.x_down is None
        ops.glu_backward(kept.gate_up, d_act, grads[:, : self.gate_up.outputs], self.block.gelu, eight, made)
        kept.gate_up = None
        d_down = self.down.adapter_gradients(given.rows, d_act if made else kept.x_down, kept.tail_down, seed_down)
        kept.x_down = kept.tail_down = d_act = None
        dx = self.gate_up.backward(grads, seed, eight)
        del eight
        d_middle = Given(self.o.gradient(dx), self.o.eight(dx, self.o.outputs))
        made = kept.x_gate_up is None
        d_out, result = given.rows[:, : self.down.outputs], d_middle.rows[:, : self.o.outputs]
        _denormalise(self.block.norm2, dx, kept.middle, result, d_out, d_middle.eight, made)
        d_gate_up = self.gate_up.adapter_gradients(grads, dx if made else kept.x_gate_up, kept.tail_gate_up, seed)
        return d_middle, [*d_gate_up, *d_down]

    def _backward_attention(self, h, kept: Kept, step: Step, given: Given, wanted: bool) -> tuple:
        """dh (None unless `wanted`) and the gradients of the attention's adapters; `given` as `_backward_mlp` left it."""
        seed, seed_o, _, _ = self.seeds(step)
        d_middle = given.rows
        d_attention = self.o.backward(d_middle, seed_o, given.eight)
        d_o = self.o.adapter_gradients(d_middle, kept.attention.detach().flatten(1), kept.tail_o, seed_o)
        grads = self.qkv.gradient(h)
        turned = torch.autograd.grad(kept.attention, (kept.q, kept.k, kept.v), d_attention.view(kept.attention.shape))
        self._turn_back(*turned[:2], kept, step, grads[:, : self.qkv.outputs].unflatten(1, (-1, self.block.size)))
        d_v = turned[2].flatten(1)
        ops.copy(d_v, grads[:, self.qkv.outputs - d_v.shape[1] : self.qkv.outputs])
        del turned, d_v, d_attention
        kept.attention = kept.before_turning = None
        dh, x = self._backward_input(h, kept, step, grads, d_middle[:, : self.o.outputs], wanted)
        return dh, [*self.qkv.adapter_gradients(grads, x, kept.tail_qkv, seed), *d_o]

    def _backward_input(self, h, kept: Kept, step: Step, grads: torch.Tensor, d_middle: torch.Tensor, wanted: bool) -> tuple:
        """(dh or None, the input of the first projection); `d_middle` reached h past the attention."""
        made = kept.x_qkv is None
        dx = self.qkv.backward(grads, self.seeds(step)[0], wanted=wanted)
        if not wanted:
            if made:
                normalise(self.block.norm1, h, dx := torch.empty_like(h))
            return None, dx if made else kept.x_qkv
        step.given = Given(self.down.gradient(h), self.down.eight(h, self.down.outputs))
        dh = step.given.rows[:, : self.down.outputs]
        _denormalise(self.block.norm1, dx, h, dh, d_middle, step.given.eight, made)
        return dh, dx if made else kept.x_qkv


def normalise(
    norm: Norm,
    h: torch.Tensor,
    out: torch.Tensor,
    added: torch.Tensor | None = None,
    total: torch.Tensor | None = None,
    eight: ops.Eight | None = None,
) -> None:
    """`norm` of h (or of h + added, kept in `total`) to `out`, and to `eight` in 8 bits."""
    ops.rms_norm(h, norm.weight, norm.eps, out, added, total, eight)


def _denormalise(
    norm: Norm, grad: torch.Tensor, h: torch.Tensor, out: torch.Tensor, residual: torch.Tensor, eight: ops.Eight | None, result: bool
) -> None:
    """The gradient of `norm`'s input to `out` (and to `eight` in 8 bits), and if asked for its result, which adapters want, to `grad`."""
    ops.rms_norm_backward(grad, h, norm.weight, norm.eps, out, residual, eight, result)


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h: torch.Tensor, layer: Layer, step: Step, *adapters: torch.Tensor) -> torch.Tensor:
        step.bring(layer.index, 1)
        ctx.save_for_backward(step.inputs.put(layer.index, h))
        kept, read = layer.attend(h, step)
        layer.expand(kept, read, step)
        del read
        out = layer.contract(kept, step)
        ctx.layer, ctx.step, ctx.kept = layer, step, layer.left_out(kept)
        return out

    @staticmethod
    def backward(ctx, d_out: torch.Tensor) -> tuple:
        ctx.step.bring(ctx.layer.index, -1)
        h = ctx.step.inputs.take(ctx.layer.index, *ctx.saved_tensors, d_out)
        kept, ctx.kept = ctx.layer.again(h, ctx.kept, ctx.step), None
        dh, gradients = ctx.layer.backward(h, kept, ctx.step, d_out, ctx.needs_input_grad[0])
        return dh, None, None, *gradients
