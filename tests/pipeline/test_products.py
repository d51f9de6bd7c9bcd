"""bfloat16 products on a CPU that has none: in fp32, rounded once. Each test applies it in a process of its own, whatever CPU this is."""

import subprocess
import sys
from textwrap import dedent

import pytest
from station import PROJECT

START = """
import warnings
warnings.simplefilter("error")
import torch
from torch.nn import functional
from tunestation.models import products
products.widen()
torch.manual_seed(0)

def draw(*shape):
    return torch.randn(shape).bfloat16()

def same(found, wanted):
    assert found.dtype == torch.bfloat16
    # pieces may be summed in another order: fp32's last bits, which seldom change a rounding
    assert (found != wanted.bfloat16()).float().mean() < 0.01
    torch.testing.assert_close(found.float(), wanted, rtol=2**-7, atol=1e-4)
"""


def run(script: str, start: str = START) -> str:
    """What `script` prints behind `start` in a process of its own."""
    words = [sys.executable, "-c", dedent(start) + dedent(script)]
    done = subprocess.run(words, env={"PYTHONPATH": str(PROJECT / "src")}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("has", [True, False])
def test_kernels_of_torch_are_replaced_on_a_cpu_without_bfloat16_products_alone(has):
    script = f"""
    import torch
    torch.ops.mkldnn._is_mkldnn_bf16_supported = lambda: {has}
    names = ["mm", "mm.out", "addmm", "addmm.out", "addmm_", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu_backward"]
    kernels = lambda: [str(torch.library.get_kernel("aten::" + name, "CPU")) for name in names]
    before = kernels()
    import tunestation.models.products
    print([one == other for one, other in zip(before, kernels())] == [{has}] * len(names))
    """
    assert run(script, "") == "True\n"


@pytest.mark.parametrize("module", ["tunestation.training.model", "tunestation.stages.evaluate", "tunestation.chat.loading"])
def test_whatever_trains_evaluates_or_answers_looks_whether_this_cpu_has_products(module):
    script = f"import sys, {module}; print('tunestation.models.products' in sys.modules)"
    environment = {"PYTHONPATH": str(PROJECT / "src")}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout == "True\n"


def test_products_are_those_of_fp32_rounded_once():
    run("""
    for rows in (1, 4, 5, 33):
        a, w, c = draw(rows, 70), draw(90, 70), draw(90)
        same(a @ w.t(), a.float() @ w.float().t())
        same(a @ w.t().contiguous(), a.float() @ w.float().t())
        same(functional.linear(a[None], w, c), functional.linear(a.float(), w.float(), c.float())[None])
        same(torch.addmm(c, a, w.t(), beta=0.5, alpha=2), torch.addmm(c.float(), a.float(), w.float().t(), beta=0.5, alpha=2))
    a, b, c = draw(3, 7, 20), draw(3, 20, 9), draw(3, 7, 9)
    same(a @ b, a.float() @ b.float())
    same(torch.baddbmm(c, a, b, alpha=0.5), torch.baddbmm(c.float(), a.float(), b.float(), alpha=0.5))
    """)


def test_weights_wider_than_a_piece_are_multiplied_piece_by_piece():
    run("""
    products.PIECE = 1000
    a, w, c = draw(6, 100), draw(333, 100), draw(6, 333)
    assert len(products._pieces(w.t())) > 3
    same(a @ w.t(), a.float() @ w.float().t())
    same(torch.addmm(c, a, w.t()), torch.addmm(c.float(), a.float(), w.float().t()))
    """)


def test_results_go_into_strided_rows_and_sums_are_made_in_place():
    run("""
    rows, a, b = draw(8, 60), draw(8, 30), draw(30, 40)
    behind = rows[:, 40:].clone()
    torch.mm(a, b, out=rows[:, :40])
    same(rows[:, :40], a.float() @ b.float())
    before = rows[:, :40].clone()
    rows[:, :40].addmm_(a, b, alpha=0.25)
    same(rows[:, :40], torch.addmm(before.float(), a.float(), b.float(), alpha=0.25))
    torch.addmm(draw(40) * 0, a, b, out=rows[:, :40])
    same(rows[:, :40], a.float() @ b.float())
    assert torch.equal(rows[:, 40:], behind)
    out = torch.empty(3, 8, 6, dtype=torch.bfloat16)
    a, b = draw(3, 8, 5), draw(3, 5, 6)
    torch.bmm(a, b, out=out)
    same(out, a.float() @ b.float())
    before = out.clone()
    same(out.baddbmm_(a, b), torch.baddbmm(before.float(), a.float(), b.float()))
    """)


def test_gradients_are_those_of_fp32_through_layers_and_attention():
    run("""
    def slopes(x, w, grad):
        x, w = (one.detach().requires_grad_() for one in (x, w))
        return torch.autograd.grad(functional.linear(x, w), [x, w], grad)

    x, w, grad = draw(2, 9, 24), draw(40, 24), draw(2, 9, 40)
    for found, wanted in zip(slopes(x, w, grad), slopes(x.float(), w.float(), grad.float())):
        same(found, wanted)

    def attended(*qkv, mask):
        qkv = [one.detach().requires_grad_() for one in qkv]
        out = functional.scaled_dot_product_attention(*qkv, is_causal=mask is None, attn_mask=mask)
        return torch.autograd.grad(out, qkv, torch.ones_like(out))

    q, k, v = draw(2, 3, 40, 16), draw(2, 3, 40, 16), draw(2, 3, 40, 16)
    for mask in (None, draw(2, 1, 40, 40)):
        wide = attended(q.float(), k.float(), v.float(), mask=None if mask is None else mask.float())
        for found, wanted in zip(attended(q, k, v, mask=mask), wide):
            assert found.dtype == torch.bfloat16 and (found - wanted).norm() < 0.02 * wanted.norm()
    """)


def test_other_dtypes_and_mistakes_are_left_to_torch():
    run("""
    theirs = torch.library.get_kernel("aten::mm", "CPU")
    x, y = torch.randn(9, 8, dtype=torch.float64), torch.randn(8, 7, dtype=torch.float64)
    torch.testing.assert_close(x @ y, torch.einsum("ik,kj->ij", x, y))
    for wrong in (lambda: draw(9, 8) @ draw(9, 8), lambda: draw(9, 8) @ torch.randn(8, 7), lambda: torch.bmm(draw(2, 3, 4), draw(3, 4, 5))):
        try:
            wrong()
        except RuntimeError:
            continue
        raise AssertionError("torch would have refused it")
    assert draw(9, 0).mm(draw(0, 7)).eq(0).all() and draw(0, 4).mm(draw(4, 7)).shape == (0, 7)
    """)


def test_autocast_multiplies_with_them():
    run("""
    x, w = torch.randn(9, 24, requires_grad=True), torch.randn(40, 24)
    with torch.autocast("cpu", torch.bfloat16):
        y = functional.linear(x, w)
    same(y.detach(), x.detach().bfloat16().float() @ w.bfloat16().float().t())
    y.sum().backward()
    assert x.grad.dtype == torch.float32
    """)
