"""How weights get into the buffer that products read: a launch that writes something else than single copies is not used."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch
from test_fast_step import adapted, choice, documents, equal, learned

from tunestation.training import fast as package
from tunestation.training.batches import lay
from tunestation.training.fast import weights
from tunestation.training.fast.kept import Keep
from tunestation.training.fast.launches import Repeatable
from tunestation.training.fast.model import Fast
from tunestation.training.fast.weights import Buffer, Filling, Launch, Together


@pytest.mark.parametrize("wrong", [True, False], ids=["the base weights", "adapters alone"])
def test_a_launch_that_writes_other_weights_is_refused_however_often_it_is_tried(wrong, monkeypatch, capsys):
    def broken(filling, buffer, base):
        filling._singly(buffer, base)
        if base is wrong:
            buffer.a[0, 0] += 1

    expected = learned_singly()
    monkeypatch.setattr(Filling, "possible", lambda *_: True)
    monkeypatch.setattr(Filling, "_at_once", broken)
    model = adapted("nf4").train()
    fast = Fast.over(model)
    for dense in (0, 2):
        fast.keep(choice([Keep.ALL] * 3, dense))
        assert not any(projection.filling.at_once for layer in fast.layers for projection in layer.projections)
        assert "the slower way is taken" in capsys.readouterr().out
    equal([learned(model, lay(documents()))], [expected])


def learned_singly():
    """What a model learns whose weights no launch writes."""
    model = adapted("nf4").train()
    Fast.over(model)
    return learned(model, lay(documents()))


def test_a_launch_that_is_right_but_not_when_it_is_made_again_is_refused(monkeypatch, capsys):
    seen = set()

    def once(filling, buffer, base):
        if buffer not in seen:
            filling._singly(buffer, base)
        seen.add(buffer)

    monkeypatch.setattr(Filling, "possible", lambda *_: True)
    monkeypatch.setattr(Filling, "_at_once", once)
    fast = Fast.over(adapted("nf4").train())
    fast.keep(choice([Keep.ALL] * 3, 0))
    assert not any(projection.filling.at_once for layer in fast.layers for projection in layer.projections)
    assert "the slower way is taken" in capsys.readouterr().out


def test_a_launch_that_writes_the_same_is_used(monkeypatch, capsys):
    used = []
    monkeypatch.setattr(Filling, "possible", lambda *_: True)
    monkeypatch.setattr(Filling, "_at_once", lambda filling, buffer, base: (used.append(base), filling._singly(buffer, base)))
    model = adapted("nf4").train()
    fast = Fast.over(model)
    fast.keep(choice([Keep.ALL] * 3, 0))
    assert set(used) == {True, False}
    used.clear()
    learned(model, lay(documents()))
    assert capsys.readouterr().out == ""
    assert set(used) == {True, False}


@pytest.mark.parametrize("level", [Keep.MORE, Keep.INPUT])
def test_adapters_of_layers_that_are_held_ready_are_written_together_once_in_a_micro_batch(level, monkeypatch):
    """Also where a layer is computed again, and after they have learned."""
    groups, alone = [], []
    plain, model, rows = adapted("nf4").train(), adapted("nf4").train(), lay(documents())
    Fast.over(plain)
    monkeypatch.setattr(Filling, "possible", lambda *_: True)
    monkeypatch.setattr(Filling, "_at_once", lambda filling, buffer, base: (alone.append(filling), filling._singly(buffer, base)))
    monkeypatch.setattr(Launch, "__call__", lambda launch, buffers: (groups.append(launch), written(launch, buffers)))
    fast = Fast.over(model)
    fast.keep(choice([level] * 3, 2))
    for _ in range(2):
        groups.clear(), alone.clear()
        equal([learned(model, rows)], [learned(plain, rows)])
        assert groups == [group.launch for group in fast.together] and [len(group.fillings) for group in groups] == [2] * 4
        mine = [projection.filling for layer in fast.layers for projection in layer.projections]
        assert set(alone) & set(mine) == set(mine[-4:])
        for each in (*plain.parameters(), *model.parameters()):
            if each.requires_grad:
                each.data.mul_(1.5)


@torch.no_grad()
def written(launch, buffers):
    """What a launch does."""
    for filling, buffer in zip(launch.fillings, buffers, strict=True):
        filling._singly(buffer, launch.base)


def test_a_launch_for_all_layers_that_writes_other_adapters_is_not_used(monkeypatch):
    def broken(launch, buffers):
        written(launch, buffers)
        if len(buffers) > 1:
            buffers[1].a[0, 0] += 1

    expected = learned_singly()
    monkeypatch.setattr(Filling, "possible", lambda *_: True)
    monkeypatch.setattr(Launch, "__call__", broken)
    model = adapted("nf4").train()
    fast = Fast.over(model)
    fast.keep(choice([Keep.ALL] * 3, 2))
    assert fast.together == []
    equal([learned(model, lay(documents()))], [expected])


def test_weights_that_are_held_ready_no_longer_give_their_memory_back_at_once(monkeypatch):
    """Not when Python next looks for what refers to itself."""
    monkeypatch.setattr(Filling, "possible", lambda *_: True)
    monkeypatch.setattr(package, "product_kernels", SimpleNamespace(fill=copies, fill_adapters=copies), raising=False)
    for kind in (Filling, Together):
        monkeypatch.setattr(kind, "agrees", lambda *_: True)
    model = adapted("nf4").train()
    fast = Fast.over(model)
    gc.collect()
    gc.disable()
    try:
        fast.keep(choice([Keep.ALL] * 3, 3))
        assert len(fast.together) == 4
        learned(model, lay(documents()))
        ready = [weakref.ref(projection.ready.a) for layer in fast.layers for projection in layer.projections]
        assert len(ready) == 12 and all(each() is not None for each in ready)
        fast.forget()
        assert not any(each() is not None for each in ready)
    finally:
        gc.enable()


def copies(*given):
    """A launch that writes nothing; it holds tensors of the buffer, as one that is made again does."""
    (buffer,) = (each for each in given if isinstance(each, Buffer))
    held = buffer.a, buffer.b
    return lambda: held and None


def test_weights_are_looked_up_once_in_a_micro_batch_and_found_where_others_have_moved_them(monkeypatch):
    asked, found, ask = [], [], weights._addresses
    monkeypatch.setattr(weights, "_addresses", lambda member, four_bit: asked.append(member) or ask(member, four_bit))
    monkeypatch.setattr(Filling, "possible", lambda *_: True)

    def fill(table, buffer, *_):
        def again():
            buffer.a.zero_(), buffer.b.zero_(), found.append(table.tolist())

        again()
        return again

    def fill_adapters(tables, _targets, buffer, *_):
        return fill(tables[0], buffer)

    made = SimpleNamespace(fill=fill, fill_adapters=fill_adapters)
    monkeypatch.setattr(package, "product_kernels", made, raising=False)
    model = adapted("nf4").train()
    fast = Fast.over(model)
    for layer in fast.layers:
        layer.keep = Keep.INPUT
    members = [member for layer in fast.layers for projection in layer.projections for member in projection.members]
    for _ in range(2):
        asked.clear(), found.clear()
        learned(model, lay(documents()))
        assert asked == members and len(found) > 2 * len(fast.layers) * 4
        there = [[place for member in projection.members for place in ask(member, True)] for projection in fast.layers[0].projections]
        assert all(table in found for table in there)
        before = [weight.data for weight in model.parameters()]  # kept, so that no other takes its place
        for weight, data in zip(model.parameters(), before, strict=True):
            weight.data = data.clone()


class Kernel:
    """Of Triton, as far as a launch needs it; `compiled` says what its compiled form does."""

    arg_names = ("x", "n", "ROWS", "WIDE")

    def __init__(self, compiled):
        self.compiled, self.usual = compiled, []

    def __getitem__(self, grid):
        return lambda *arguments, **options: self.usual.append((grid, arguments, options)) or self.compiled


class Compiled:
    """Launches at once; `takes` arguments."""

    def __init__(self, takes=4):
        self.takes, self.launched = takes, []

    def __getitem__(self, grid):
        def launch(*arguments):
            if len(arguments) != self.takes:
                raise TypeError("function takes other arguments")
            self.launched.append((grid, arguments))

        return launch


def test_a_launch_is_made_again_without_a_look_at_its_arguments():
    kernel = Kernel(Compiled())
    launch = Repeatable(kernel, 7, "x", 3, ROWS=16, WIDE=True, num_warps=4)
    assert kernel.usual == [((7,), ("x", 3), {"ROWS": 16, "WIDE": True, "num_warps": 4})]
    launch()
    launch()
    assert kernel.compiled.launched == 2 * [((7, 1, 1), ("x", 3, 16, True))]
    assert len(kernel.usual) == 1


@pytest.mark.parametrize("compiled", [None, Compiled(takes=2)], ids=["interpreted", "by a Triton that launches otherwise"])
def test_a_launch_that_cannot_be_made_so_is_made_in_the_usual_way(compiled):
    kernel = Kernel(compiled)
    launch = Repeatable(kernel, 7, "x", 3, ROWS=16, WIDE=True, num_warps=4)
    launch()
    launch()
    assert kernel.usual == 3 * [((7,), ("x", 3), {"ROWS": 16, "WIDE": True, "num_warps": 4})]
