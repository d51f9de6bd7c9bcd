"""Launches of Triton kernels that are made again and again."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from triton.runtime.jit import JITFunction


class Repeatable:
    """A launch that has been made and can be made again, with the same arguments and on what is by then in them.

    Triton looks at each argument of a launch every time, for which the host takes longer than a small kernel runs. `options` holds the
    kernel's constants by name, and how many warps it has.
    """

    def __init__(self, kernel: JITFunction, programs: int, *arguments: object, **options: object):
        self.usual = lambda: kernel[(programs,)](*arguments, **options)
        compiled = self.usual()
        constants = [options[name] for name in kernel.arg_names[len(arguments) :]]
        self.again = None if compiled is None else lambda: compiled[programs, 1, 1](*arguments, *constants)
        """None by Triton's interpreter."""

    def __call__(self) -> None:
        if self.again is None:
            self.usual()
            return
        try:
            self.again()
        except TypeError:  # it takes other arguments by a later Triton; nothing was launched
            self.again = None
            self.usual()
