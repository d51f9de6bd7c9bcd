"""cuBLASLt, the matrix library that torch brings, through ctypes: torch has no way to ask it for another algorithm than its first.

Functions, structures and numbers are those of NVIDIA's cuBLAS documentation, chapter "Using the cuBLASLt API". Matrices lie by columns
there, so that out = x @ weight by rows is out' = weight' @ x' to it. No algorithm is asked for that needs memory of its own.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, byref, c_float, c_int, c_int32, c_int64, c_size_t, c_uint32, c_uint64, c_void_p, sizeof
from functools import cache

import torch

BFLOAT16, FLOAT32, SUM_IN_FLOAT32 = 14, 0, 68
"""CUDA_R_16BF, CUDA_R_32F, CUBLAS_COMPUTE_32F."""
FIRST_TURNED = 3
"""Attribute of a product: whether its first matrix is transposed; the second is not unless that is said."""
COLUMNS = 3
"""Attribute of a matrix."""
WORKSPACE, ALIGNMENTS = 1, (5, 6, 7, 8)
"""Attributes of a wish."""
PIECES = 2
"""Attribute of an algorithm: in how many parts it makes each sum."""
ALIGNED = 16
"""Bytes that all addresses are multiples of."""
ONE, NOTHING = byref(c_float(1)), byref(c_float(0))
"""The product's share in the result, and that of what was there."""
OFFERED = 16
"""Algorithms that are asked for at most; 13.1 gives 8."""


class Algorithm(ctypes.Structure):
    """One way to make a product, as the library describes it."""

    _fields_ = (("data", c_uint64 * 8),)


class _Offer(ctypes.Structure):
    _fields_ = (("algorithm", Algorithm), ("workspace", c_size_t), ("state", c_int), ("waves", c_float), ("reserved", c_int * 4))


@cache
def library() -> ctypes.CDLL | None:
    """The one that torch has loaded, or None."""
    try:
        found = ctypes.CDLL(f"libcublasLt.so.{torch.version.cuda.split('.')[0]}")
    except (OSError, AttributeError):
        return None
    p = c_void_p
    for name, kinds in {
        "Create": [POINTER(p)],
        "MatmulDescCreate": [POINTER(p), c_int, c_int],
        "MatmulDescSetAttribute": [p, c_int, p, c_size_t],
        "MatrixLayoutCreate": [POINTER(p), c_int, c_uint64, c_uint64, c_int64],
        "MatrixLayoutSetAttribute": [p, c_int, p, c_size_t],
        "MatmulPreferenceCreate": [POINTER(p)],
        "MatmulPreferenceSetAttribute": [p, c_int, p, c_size_t],
        "MatmulPreferenceDestroy": [p],
        "MatmulAlgoGetHeuristic": [p, p, p, p, p, p, p, c_int, p, POINTER(c_int)],
        "MatmulAlgoConfigGetAttribute": [p, c_int, p, c_size_t, POINTER(c_size_t)],
        "Matmul": [p, p, p, p, p, p, p, p, p, p, p, p, p, p, c_size_t, p],
    }.items():
        getattr(found, f"cublasLt{name}").argtypes = kinds
    return found


def _made(name: str, *arguments: object) -> c_void_p:
    """What a function that creates something has created."""
    made = c_void_p()
    _succeed(getattr(library(), f"cublasLt{name}")(byref(made), *arguments))
    return made


def _succeed(status: int) -> None:
    if status:
        raise RuntimeError(f"cuBLASLt: status {status}")


@cache
def _handle(device: int) -> c_void_p:
    with torch.cuda.device(device):
        return _made("Create")


def _set(kind: str, of: c_void_p, attribute: int, value: ctypes._SimpleCData) -> None:
    _succeed(getattr(library(), f"cublasLt{kind}SetAttribute")(of, attribute, byref(value), sizeof(value)))


class Matmul:
    """out [T, N] = x [T, K] @ weight [K, N], plus `added` [T, N] if it is made with one; bfloat16, summed in fp32 and rounded once.

    For tensors that lie as those that it is made with; T may be another.
    """

    def __init__(self, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None = None):
        turned = weight.stride(1) != 1
        self.rows, self.device = x.size(0), x.get_device()
        self.handle = _handle(self.device)
        self.description = _made("MatmulDescCreate", SUM_IN_FLOAT32, FLOAT32)
        _set("MatmulDesc", self.description, FIRST_TURNED, c_int32(turned))
        self.weight = _layout(weight.t() if turned else weight)
        self.x, self.out = _layout(x), _layout(out)
        self.added = self.out if added is None else _layout(added)

    @staticmethod
    def possible(x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None = None) -> bool:
        """Whether such tensors are known here."""
        return (
            library() is not None
            and x.dtype == weight.dtype == out.dtype == torch.bfloat16
            and x.stride(1) == out.stride(1) == 1 in weight.stride()
            and (added is None or (added.dtype == out.dtype and added.stride(1) == 1))
            and x.get_device() == torch.cuda.current_device()
        )

    def algorithms(self) -> list[Algorithm]:
        """Those that the library offers for the present T and that make each sum in one piece; what it takes for the fastest first."""
        offers, count = (_Offer * OFFERED)(), c_int()
        wish = _made("MatmulPreferenceCreate")
        _set("MatmulPreference", wish, WORKSPACE, c_uint64(0))
        for attribute in ALIGNMENTS:
            _set("MatmulPreference", wish, attribute, c_uint32(ALIGNED))
        matrices = self.weight, self.x, self.added, self.out
        library().cublasLtMatmulAlgoGetHeuristic(self.handle, self.description, *matrices, wish, OFFERED, offers, byref(count))
        library().cublasLtMatmulPreferenceDestroy(wish)
        return [offer.algorithm for offer in offers[: count.value] if offer.state == 0 and _pieces(offer.algorithm) <= 1]

    def run(
        self, algorithm: Algorithm, x: torch.Tensor, weight: torch.Tensor, out: torch.Tensor, added: torch.Tensor | None = None
    ) -> bool:
        """Whether `algorithm` can do it; then it has been given to the current stream."""
        to, left, right = out.data_ptr(), weight.data_ptr(), x.data_ptr()
        there, share = (to, NOTHING) if added is None else (added.data_ptr(), ONE)
        if (to | left | right | there) % ALIGNED:
            return False
        self._take(x.size(0))
        stream = torch._C._cuda_getCurrentRawStream(self.device)  # as Triton asks; an object for it takes as long as the rest of this
        status = library().cublasLtMatmul(
            self.handle, self.description, ONE, left, self.weight, right, self.x, share, there, self.added, to, self.out,
            byref(algorithm), None, 0, stream,
        )  # fmt: skip
        return status == 0

    def _take(self, rows: int) -> None:
        """Let T be `rows`."""
        if rows != self.rows:
            for matrix in (self.x, self.out, self.added):
                _set("MatrixLayout", matrix, COLUMNS, c_uint64(rows))
            self.rows = rows


def _pieces(algorithm: Algorithm) -> int:
    found, size = c_int32(), c_size_t()
    _succeed(library().cublasLtMatmulAlgoConfigGetAttribute(byref(algorithm), PIECES, byref(found), sizeof(found), byref(size)))
    return found.value


def _layout(matrix: torch.Tensor) -> c_void_p:
    """The transpose of what lies by rows."""
    rows, columns = matrix.shape
    return _made("MatrixLayoutCreate", BFLOAT16, columns, rows, matrix.stride(0))
