"""What a traced or compiled program does: FLOPs, bytes moved, collectives, kernels.

Compiling is done elsewhere.
"""

import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax.extend.core

_BITS = {"pred": 8}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.+?) ([a-z][\w-]*)\((.*)$")
_COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# Instructions that move nothing: they name parts of buffers, or end what another one starts.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "partition-id"}
_FREE |= {"while", "conditional", "call"}


class Traffic(NamedTuple):
    """What a compiled program moves on one device and in one call, without bodies of loops.

    Attributes:
      bytes: bytes that its kernels read and write.
      kernels: number of its instructions that do something: fusions, library calls, copies.
      collectives: bytes of the results of each kind of collective, and how many there are.
    """

    bytes: int
    kernels: int
    collectives: dict[str, tuple[int, int]]


def count_flops(jaxpr: Any) -> int:
    """Return the FLOPs of the convolutions and matrix products in a jaxpr, on all devices.

    A multiplication and an addition are two FLOPs. Multiplications with the zeros between the
    pixels of a transposed convolution are not counted, those with padding are. Scans count as often
    as they run. Where a program depends on the platform, the form of GPUs and TPUs counts.
    """
    total = 0
    for equation in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, settings = equation.primitive.name, equation.params
        if name == "conv_general_dilated":
            total += _conv_flops(equation)
        elif name == "dot_general":
            ((contracted, _), _) = settings["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            depth = math.prod(shape[axis] for axis in contracted)
            total += 2 * math.prod(equation.outvars[0].aval.shape) * depth
        elif name == "cond":
            counts = [count_flops(branch) for branch in settings["branches"]]
            total += counts[-1] if settings.get("branches_platforms") else max(counts)
        else:
            times = settings["length"] if name == "scan" else 1
            total += times * sum(count_flops(inner) for inner in _inner(settings))
    return total


def _inner(settings: dict[str, Any]) -> Iterator[Any]:
    """Yield the jaxprs among an equation's parameters."""
    for value in settings.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, jax.extend.core.Jaxpr | jax.extend.core.ClosedJaxpr):
                yield part


def _conv_flops(equation: Any) -> int:
    settings, kernel = equation.params, equation.invars[1].aval.shape
    numbers = settings["dimension_numbers"].rhs_spec  # (output, input, *spatial) axes
    taps = math.prod(kernel[axis] for axis in numbers[2:])
    dilated = math.prod(settings["lhs_dilation"])  # the rest of the image are zeros
    return 2 * math.prod(equation.outvars[0].aval.shape) * taps * kernel[numbers[1]] // dilated


def read_traffic(text: str) -> Traffic:
    """Return what the entry computation of optimised HLO moves.

    Args:
      text: `compiled.as_text()`.
    """
    entry = text[text.index("\nENTRY ") :]
    sizes: dict[str, int] = {}
    moved = kernels = 0
    collectives: dict[str, tuple[int, int]] = {}
    for line in entry.splitlines():
        found = _INSTRUCTION.match(line)
        if found is None:
            continue
        name, kind, operation, rest = found.groups()
        sizes[name] = size_of(kind)
        base = operation.removesuffix("-start")
        if base in _COLLECTIVES:
            count, size = collectives.get(base, (0, 0))
            collectives[base] = count + 1, size + sizes[name]
        if operation in _FREE or operation.endswith("-done"):
            continue
        operands = re.findall(r"%([\w.-]+)", rest.partition("), ")[0])
        moved += sizes[name] + sum(sizes.get(operand, 0) for operand in operands)
        kernels += 1
    return Traffic(moved, kernels, collectives)


def size_of(kind: str) -> int:
    """Return the bytes of HLO's arrays, such as 'f32[2,3]{1,0}' or a tuple of them."""
    total = 0
    for dtype, shape in _ARRAY.findall(kind):
        bits = _BITS.get(dtype) or int(re.search(r"\d+", dtype)[0])
        total += bits * math.prod(int(n) for n in shape.split(",") if n) // 8
    return total
