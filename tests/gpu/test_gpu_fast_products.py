"""Large products on a GPU: the ways that may be taken give the same bits, and which one is the fastest is found without waiting."""

import pytest
import torch
from unwaited import nothing_waits

from tunestation.training.fast import products
from tunestation.training.fast.cublaslt import Matmul

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]
SIZES = [(4096, 4160, 4096), (4096, 4224, 6144), (16384, 16448, 2048)]


def arguments(rows, columns, outputs, turned, pad=64, dtype=torch.bfloat16):
    """As a projection has them: weights in a wider buffer, by rows or by columns, and results with room behind each row."""
    torch.manual_seed(0)
    weight = torch.randn(*((outputs, columns + pad) if turned else (columns, outputs + pad)), device="cuda", dtype=dtype)
    weight = weight[:, :columns].t() if turned else weight[:, :outputs]
    x = torch.randn(rows, columns + pad, device="cuda", dtype=dtype)[:, :columns]
    return x, weight, torch.full((rows, outputs + pad), float("nan"), device="cuda", dtype=dtype)[:, :outputs]


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch):
    """No search of another test."""
    monkeypatch.setattr(products, "_searches", {})


@pytest.mark.parametrize("more", [False, True])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_every_way_gives_all_of_the_bits(size, turned, more):
    """Also with something added, which is rounded with the sum: of what is rounded twice a quarter would be others."""
    x, weight, out = arguments(*size, turned)
    added = torch.randn(out.shape, device="cuda", dtype=out.dtype) * 64 if more else None
    known = products.ways((x, weight, out, added))
    assert len(known) > 3
    exact = x.double() @ weight.double() + (added.double() if more else 0)
    assert known[0](x, weight, out, added)
    wanted = out.clone()
    assert (wanted == exact.to(out.dtype)).float().mean() > 0.98
    if not more:
        assert torch.equal(wanted, torch.mm(x, weight))
    for way in known[1:]:
        out.fill_(float("nan"))
        assert way(x, weight, out, added)
        assert torch.equal(out, wanted)


@pytest.mark.parametrize(("columns", "outputs", "in_pieces"), [(4160, 4096, False), (16384, 128, True), (4096, 192, False)])
def test_with_any_number_of_rows_the_algorithms_agree(columns, outputs, in_pieces):
    """Of few outputs torch makes each long sum `in_pieces`, which round otherwise where a sum is nearly 0."""
    x, weight, out = arguments(4096, columns, outputs, True)
    matmul, wanted = Matmul(x, weight, out), arguments(4096, columns, outputs, True)[2]
    first, *others = matmul.algorithms()
    assert others
    for rows in (4096, 4095, 3001, 2560, 2049):
        assert matmul.run(first, x[:rows], weight, wanted[:rows])
        for algorithm in others:
            out.fill_(float("nan"))
            if matmul.run(algorithm, x[:rows], weight, out[:rows]):
                assert torch.equal(out[:rows], wanted[:rows]) and out[rows:].isnan().all()
        theirs = torch.mm(x[:rows], weight)
        assert (wanted[:rows].float() - theirs.float()).norm() < 2e-3 * theirs.float().norm()
        if not in_pieces:
            torch.testing.assert_close(wanted[:rows], theirs)


def test_the_fastest_is_found_without_waiting_for_the_gpu():
    given = arguments(4096, 4160, 4096, True)
    products.product(*given)
    wanted = torch.mm(given[0], given[1])
    (search,) = products._searches.values()
    assert search.compared and len(search.ways) > 3
    with nothing_waits():
        for _ in range(300):
            products.product(*given)
    for _ in range(8):
        torch.cuda.synchronize()
        for _ in range(100):
            products.product(*given)
    assert len(search.ways) == 1 and torch.equal(given[2], wanted)


def test_addresses_that_no_algorithm_is_for_are_torchs_work():
    x, weight, out = arguments(4096, 4160, 4096, True, pad=0)
    matmul = Matmul(x, weight, out)
    moved = torch.empty(x.numel() + 1, device="cuda", dtype=x.dtype)[1:].view(x.shape).copy_(x)
    assert [matmul.run(algorithm, moved, weight, out) for algorithm in matmul.algorithms()].count(False) > 3
    products.product(moved, weight, out)
    (search,) = products._searches.values()
    assert not search.compared and torch.equal(out, torch.mm(moved, weight))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_other_formats_are_torchs_work(dtype):
    given = arguments(4096, 4160, 4096, True, dtype=dtype)
    assert products.ways(given) == [products.by_torch]
    products.product(*given)
    assert torch.equal(given[2], torch.mm(given[0], given[1]))
