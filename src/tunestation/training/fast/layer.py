"""A decoder layer as one autograd function, forward and backward written out: it decides what is kept and what is computed again."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from tunestation.training.fast import ops
from tunestation.training.fast.adapters import Joined, Layout, Part
from tunestation.training.fast.attention import ByTorch
from tunestation.training.fast.block import Block, Norm
from tunestation.training.fast.flash import Flash
from tunestation.training.fast.heads import Heads
from tunestation.training.fast.kept import Keep, Kept
from tunestation.training.fast.projection import Input, Projection
from tunestation.training.fast.step import Given, Step
from tunestation.training.fast.weights import Scratch


class Layer:
    """Runs one decoder layer of a Llama-like model over the weights of its modules."""

    def __init__(
        self,
        block: Block,
        index: int,
        projection: type[Projection],
        scratch: Scratch,
        gated: bool = False,
        attention: type[ByTorch] | type[Flash] = ByTorch,
    ):
        """`gated`: the activation goes inside of products, if the MLP's rows begin where these want it; `attention` makes heads attend."""
        self.block, self.index, self.attention = block, index, attention
        self.qkv, self.o, self.gate_up, self.down = (
            projection(modules, scratch) for modules in (block.qkv, block.o, block.gate_up, block.down)
        )
        if gated and self.gate_up.aligned and self.down.aligned:
            self.gate_up = projection(block.gate_up, scratch, paired=True)
        self.heads = Heads(block)
        self.projections = [self.qkv, self.o, self.gate_up, self.down]
        self.layout = Layout([each.filling for each in self.projections])
        self.joined: Joined | None = None
        self.keep = Keep.ALL

    @property
    def adapters(self) -> list[nn.Parameter]:
        """Those of this layer that learn, in the order of their gradients."""
        return [self.joined.weight] if self.joined else self.layout.weights

    def look_up(self) -> None:
        """A micro-batch begins: since the last one others may have put tensors in the place of weights."""
        if self.joined:
            self.joined.refresh()
        for projection in self.projections:
            projection.filling.known = projection.filling.written = False

    def __call__(self, h: torch.Tensor, step: Step) -> torch.Tensor:
        """h [T, K] -> [T, K]."""
        return _Layer.apply(h, self, step, *self.adapters)

    def seeds(self, step: Step) -> list[int | None]:
        """Of the dropout before each projection."""
        first = len(self.projections) * self.index
        return [None if step.seed is None else (step.seed + first + place) % 2**31 for place in range(len(self.projections))]

    def forward(self, h: torch.Tensor, step: Step) -> tuple[torch.Tensor, Kept]:
        """The layer's result [T, K]; also all that it has kept."""
        kept, read = self.attend(h, step, self.keep is not Keep.INPUT)
        seed, found = self.seeds(step)[3], None
        if self.gate_up.paired:
            found = self.down.input(h, None)
        self.expand(kept, read, found and found.x, self.keep in (Keep.ALL, Keep.MORE))
        del read  # its memory is free before what comes next takes some
        if self.gate_up.paired:
            self.down.draw(found, seed)
        else:
            found = self.down.input(h, seed)
            ops.glu(kept.gate_up, found.x, self.block.gelu, found.eight, found.dropped)
        return self.contract(kept, found), kept

    def attend(self, h: torch.Tensor, step: Step, stays: bool = True) -> tuple[Kept, Input]:
        """The first half; also what gate and up read. If nothing of it `stays`, tails are not copied."""
        seed, seed_o, seed_gate_up, _ = self.seeds(step)
        read = self.qkv.input(h, seed)
        _normalise_to(read, self.block.norm1, h)
        qkv, x_qkv = self.qkv.forward(read, keep=self.keep is Keep.MORE)
        qkv, tail = qkv.unflatten(1, (-1, self.block.size)), _tail(read.rows, self.qkv, x_qkv, stays)
        q, k, v = self.heads.turn(qkv, step)
        read = self.o.input(h, seed_o)
        attention = self.attention(q, k, v, step.documents, self.block.scale, read.x if self.o.direct else None)
        _hand_over(attention.result, read)
        middle = self.o.forward(read, added=h)[0]
        tail_o = _tail(read.rows, self.o, attention.result, stays)  # its input, the attention, is kept anyway
        read = self.gate_up.input(h, seed_gate_up)
        _normalise_to(read, self.block.norm2, middle)
        return Kept(attention, tail, tail_o, middle, qkv if self.block.head_norms else None, x_qkv=x_qkv), read

    def expand(self, kept: Kept, read: Input, out: torch.Tensor | None = None, stays: bool = True) -> None:
        """Gate and up from what they read; also what the activation makes of them, to `out` if it is inside of the product. If they do
        not stay, their tail is not copied."""
        keep = self.keep is Keep.MORE
        if out is None:
            kept.gate_up, kept.x_gate_up = self.gate_up.forward(read, roomy=True, keep=keep)
        else:
            kept.gate_up, kept.x_gate_up = self.gate_up.forward_through(read, out, keep)
        kept.tail_gate_up = _tail(read.rows, self.gate_up, kept.x_gate_up, stays)

    def contract(self, kept: Kept, read: Input) -> torch.Tensor:
        """The layer's result."""
        # torch's activation on a CPU rounds otherwise than the one that is made again with its slope
        keep = self.keep is Keep.MORE and read.x.is_cuda
        result, kept.x_down = self.down.forward(read, added=kept.middle, keep=keep)
        kept.tail_down = _tail(read.rows, self.down, kept.x_down)
        return result

    def again(self, h: torch.Tensor, kept: Kept, step: Step) -> Kept:
        """`kept` completed by what this layer's `keep` left out."""
        if self.keep in (Keep.MORE, Keep.ALL):
            return kept
        tail_down = kept.tail_down
        if self.keep is Keep.INPUT:
            kept, read = self.attend(h, step)
        else:
            read = self.gate_up.input(h, self.seeds(step)[2])
            _normalise_to(read, self.block.norm2, kept.middle)
        self.expand(kept, read)
        kept.tail_down = tail_down
        return kept

    def left_out(self, kept: Kept) -> Kept:
        """`kept` without what is computed again."""
        if self.keep is Keep.INPUT:
            return Kept(*[None] * 5, tail_down=kept.tail_down)
        return replace(kept, gate_up=None) if self.keep is Keep.ATTENTION else kept

    def backward(self, h: torch.Tensor, kept: Kept, step: Step, d_out: torch.Tensor, wanted: bool) -> tuple:
        """(dh or None, gradients of `adapters`)."""
        narrow = all(weight.dtype == h.dtype for weight in self.adapters)
        flat = h.new_empty(self.layout.numbers, dtype=h.dtype if narrow else torch.float32)
        qkv, o, gate_up, down = self.layout.parts(flat)
        d_middle = self._backward_mlp(kept, step, self._given(step, d_out), gate_up, down)
        dh = self._backward_attention(h, kept, step, d_middle, wanted, qkv, o)
        step.beside.join()
        found = [flat] if self.joined else self.layout.views(flat)
        return dh, [gradient.to(weight.dtype) for gradient, weight in zip(found, self.adapters, strict=True)]

    def _given(self, step: Step, d_out: torch.Tensor) -> Given:
        """The gradient of the layer's result, as the layer behind has left it; only that of the last layer is copied."""
        given, step.given = step.given, None
        if given is not None and given.rows.data_ptr() == d_out.data_ptr() and given.rows.shape == self.down.gradient_shape(d_out):
            return given
        rows = self.down.gradient(d_out)
        ops.copy(d_out, rows[:, : self.down.outputs])
        return Given(rows, None)

    def _backward_mlp(self, kept: Kept, step: Step, given: Given, out_gate_up: Part, out_down: Part) -> Given:
        """Gradient of `middle` in the rows that the attention's last projection reads; those of adapters to the parts."""
        _, _, seed, seed_down = self.seeds(step)
        grads, eight, x = self._backward_gate(kept, given, seed_down)
        kept.gate_up = None
        x = kept.x_down if x is None else self.down.adapter_input(x, seed_down)
        self._learn(step, self.down, given.rows, x, kept.tail_down, out_down)
        kept.x_down = kept.tail_down = x = None
        dx = self.gate_up.backward(grads, seed, eight)
        del eight
        d_middle = Given(self.o.gradient(dx), self.o.eight(dx, self.o.outputs))
        made = self.gate_up.rank > 0 and kept.x_gate_up is None
        d_out, result = given.rows[:, : self.down.outputs], d_middle.rows[:, : self.o.outputs]
        _denormalise(self.block.norm2, dx, kept.middle, result, d_out, d_middle.eight, made)
        x = self.gate_up.adapter_input(dx, seed) if made else kept.x_gate_up
        self._learn(step, self.gate_up, grads, x, kept.tail_gate_up, out_gate_up)
        return d_middle

    def _learn(self, step: Step, projection: Projection, *given: object) -> None:
        """Gradients of the projection's adapters: beside the rest where what they read is kept anyway and takes no memory for longer."""
        if self.keep is Keep.MORE:
            step.beside.run(projection.adapter_gradients, *given)
        else:
            projection.adapter_gradients(*given)

    def _backward_gate(self, kept: Kept, given: Given, seed: int | None) -> tuple:
        """(rows that the backward pass of gate and up reads, also in 8 bits, what the last projection read if it is made again)."""
        made, outputs = self.down.rank > 0 and kept.x_down is None, self.gate_up.outputs
        if self.gate_up.paired:
            grads = self.gate_up.widened(kept.gate_up)
            x = grads.new_empty(len(grads), self.down.columns) if made else None
            self.down.backward_through(given.rows, seed, kept.gate_up, grads[:, :outputs], x)
            return grads, None, x
        x = self.down.backward(given.rows, seed, given.eight)
        grads = self.gate_up.widened(kept.gate_up)
        eight = self.gate_up.eight(grads, outputs)
        ops.glu_backward(kept.gate_up, x, grads[:, :outputs], self.block.gelu, eight, made)
        return grads, eight, x if made else None

    def _backward_attention(self, h, kept: Kept, step: Step, given: Given, wanted: bool, out_qkv: Part, out_o: Part) -> torch.Tensor | None:
        """dh (None unless `wanted`); gradients of adapters to the parts. `given` as `_backward_mlp` left it."""
        d_middle, seed_o = given.rows, self.seeds(step)[1]
        d_attention = self.o.backward(d_middle, seed_o, given.eight)
        result = kept.attention.result
        self._learn(step, self.o, d_middle, self.o.adapter_input(result.flatten(1), seed_o), kept.tail_o, out_o)
        grads = self.qkv.gradient(h)
        places = self.heads.of(grads[:, : self.qkv.outputs]) if self.qkv.direct else None
        turned = kept.attention.gradients(d_attention.view(result.shape), places)
        eight, begun = self.heads.turn_back(turned, kept.before_turning, step, grads, self.qkv, wanted)
        kept.attention = kept.before_turning = result = turned = d_attention = None
        dx = self.qkv.backward(grads, self.seeds(step)[0], eight, wanted, begun)
        del eight
        dh, x = self._backward_input(h, kept, step, dx, d_middle[:, : self.o.outputs])
        del dx
        self.qkv.adapter_gradients(grads, x, kept.tail_qkv, out_qkv)
        return dh

    def _backward_input(self, h, kept: Kept, step: Step, dx: torch.Tensor | None, d_middle: torch.Tensor) -> tuple:
        """(dh, None without dx, what the adapters of the first projection read); `d_middle` reached h past the attention."""
        made, dh = self.qkv.rank > 0 and kept.x_qkv is None, None
        if dx is None and made:
            normalise(self.block.norm1, h, dx := torch.empty_like(h))
        elif dx is not None:
            step.given = Given(self.down.gradient(h), self.down.eight(h, self.down.outputs))
            dh = step.given.rows[:, : self.down.outputs]
            _denormalise(self.block.norm1, dx, h, dh, d_middle, step.given.eight, made)
        return dh, self.qkv.adapter_input(dx, self.seeds(step)[0]) if made else kept.x_qkv


def _hand_over(attention: torch.Tensor, read: Input) -> None:
    """What attention has made [T, heads, size], to where the next product reads it, unless it is there."""
    if attention.data_ptr() != read.x.data_ptr():
        ops.copy(attention.flatten(1), read.x, read.eight, read.dropped)
    elif read.dropped is not None:
        read.dropped.draw(read.x)


def _tail(rows: torch.Tensor, projection: Projection, kept: torch.Tensor | None, stays: bool = True) -> torch.Tensor | None:
    """The adapter's share of the completed `rows`, if it stays; a copy, unless these rows are what is kept."""
    if not stays:
        return None
    tail = rows[:, projection.columns :]
    return tail if kept is not None and kept.data_ptr() == rows.data_ptr() else tail.clone()


def normalise(norm: Norm, h: torch.Tensor, out: torch.Tensor) -> None:
    """`norm` of h to `out`."""
    ops.rms_norm(h, norm.weight, norm.eps, out)


def _normalise_to(read: Input, norm: Norm, h: torch.Tensor) -> None:
    """`norm` of h to where a projection reads it."""
    ops.rms_norm(h, norm.weight, norm.eps, read.x, read.eight, read.dropped)


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
        out, kept = layer.forward(h, step)
        ctx.layer, ctx.step, ctx.kept = layer, step, layer.left_out(kept)
        return out

    @staticmethod
    def backward(ctx, d_out: torch.Tensor) -> tuple:
        ctx.step.bring(ctx.layer.index, -1)
        h = ctx.step.inputs.take(ctx.layer.index, *ctx.saved_tensors, d_out)
        kept, ctx.kept = ctx.layer.again(h, ctx.kept, ctx.step), None
        dh, gradients = ctx.layer.backward(h, kept, ctx.step, d_out, ctx.needs_input_grad[0])
        return dh, None, None, *gradients
