"""Every scheme keeps its promise: round trips within its tolerance, constants exact, nothing non-finite, ever."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from octavo.kv.scheme import ITEM_BYTES, Scheme
from octavo.kv.schemes import SCHEMES

WIDTHS = (8, 64, 80, 96, 128, 256)
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
MAX = torch.finfo(torch.float32).max


def make_cases(width: int) -> dict[str, Tensor]:
    """Named batches of vectors `[N, width]`, fp32."""
    draw = torch.Generator().manual_seed(width)
    normal = torch.randn(64, width, generator=draw)
    outlier = normal.clone()
    outlier[:, width // 3] = 158.0
    offset = normal * 0.01 + 400.0
    exponents = torch.rand(64, width, generator=draw) * 60 - 40
    return {
        "random": normal,
        "uniform": torch.rand(64, width, generator=draw) - 0.5,
        "zero": torch.zeros(4, width),
        "negative zero": -torch.zeros(4, width),
        "constant": torch.linspace(-300, 300, 31)[:, None].expand(31, width).contiguous(),
        "outlier": outlier,
        "offset": offset,
        "one-hot": torch.eye(width) * 7.0,
        "two-valued": torch.where(normal > 0, 3.0, -1.0),
        "small": normal * 1e-4,
        "tiny": normal * 1e-7,
        "subnormal": normal * 1e-40,
        "wide": torch.exp2(exponents) * normal.sign(),
        "large": normal * 1e4,
        "fp16 edge": normal.sign() * 65504.0,
        "beyond fp16": normal * 1e6,
        "huge": normal * 1e30,
        "float32 edge": normal.sign() * MAX,
        "one huge": torch.where(torch.arange(width) == 3, MAX, normal),
    }


def round_trip(scheme: Scheme, vectors: Tensor) -> Tensor:
    return scheme.decode(scheme.encode(vectors))


def bound(scheme: Scheme, vectors: Tensor) -> Tensor:
    """`[N, 1]`, in fp64: what the scheme's tolerance allows, and the roundings of fp32 arithmetic itself."""
    exact = vectors.double()
    spread = exact.amax(-1, keepdim=True) - exact.amin(-1, keepdim=True)
    peak = exact.abs().amax(-1, keepdim=True)
    tolerance = scheme.tolerance
    return tolerance.of_range * spread + tolerance.of_peak * peak + tolerance.floor


def assert_within_tolerance(scheme: Scheme, vectors: Tensor, what: str) -> None:
    decoded = round_trip(scheme, vectors)
    assert decoded.dtype == torch.float32 and decoded.shape == vectors.shape
    assert decoded.isfinite().all(), f"{scheme.name}: non-finite from {what}"
    holds = vectors.abs().amax(-1, keepdim=True) <= scheme.tolerance.holds_to
    excess = ((decoded.double() - vectors.double()).abs() - bound(scheme, vectors)) * holds
    worst = excess.amax().item()
    assert worst <= 0, f"{scheme.name}: {what} is {worst:.3g} beyond its tolerance"


@each_scheme
@pytest.mark.parametrize("width", WIDTHS)
def test_round_trip_within_tolerance(scheme, width):
    for what, vectors in make_cases(width).items():
        assert_within_tolerance(scheme, vectors, f"{what} of width {width}")


@each_scheme
@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=8, max_size=8),
    repeats=st.integers(1, 4),
)
def test_round_trip_of_any_numbers(scheme, values, repeats):
    assert_within_tolerance(scheme, torch.tensor([values * repeats], dtype=torch.float32), "drawn values")


@each_scheme
def test_constant_vectors_come_back_but_for_metadata_rounding(scheme):
    constants = torch.cat((torch.linspace(-400, 400, 997), torch.tensor([0.0, 1e-3, -1e-3, 1e-6, 0.1, 1 / 3])))
    decoded = round_trip(scheme, constants[:, None].expand(-1, 64).contiguous())
    assert (decoded == decoded[:, :1]).all(), f"{scheme.name}: a constant vector came back uneven"
    # the integer schemes round to the metadata's fp16 at worst; the floats to their own precision
    constants, decoded = (side[constants.abs() <= scheme.tolerance.holds_to] for side in (constants, decoded))
    allowed = torch.maximum(constants.abs() * max(scheme.tolerance.of_peak, 2**-11), torch.tensor(2.0**-24))
    floor = scheme.tolerance.floor
    assert ((decoded[:, 0] - constants).abs() <= allowed + floor).all()


@each_scheme
def test_zero_is_zero(scheme):
    assert (round_trip(scheme, torch.zeros(3, 64)) == 0).all()


@each_scheme
def test_exact_schemes_are_exact(scheme):
    vectors = torch.randn(32, 64, generator=torch.Generator().manual_seed(1)) * 1e3
    same = torch.equal(round_trip(scheme, vectors), vectors)
    assert same == scheme.exact


@each_scheme
def test_no_nan_leaks_to_a_neighbour(scheme):
    """A vector with a non-finite number may decode to anything; the vectors beside it decode as they would alone."""
    vectors = torch.randn(6, 64, generator=torch.Generator().manual_seed(2))
    clean = round_trip(scheme, vectors)
    for poison in (float("nan"), float("inf"), -float("inf")):
        dirty = vectors.clone()
        dirty[2, 5] = poison
        decoded = round_trip(scheme, dirty)
        keep = torch.tensor([0, 1, 3, 4, 5])
        assert torch.equal(decoded[keep], clean[keep])


@each_scheme
@pytest.mark.parametrize("width", WIDTHS)
def test_planes_are_what_encode_returns(scheme, width):
    encoded = scheme.encode(torch.randn(2, 3, width))
    assert len(encoded) == len(scheme.planes)
    for plane, stored in zip(scheme.planes, encoded, strict=True):
        assert str(stored.dtype) == f"torch.{plane.dtype}"
        assert stored.shape == (2, 3, plane.items(width))
        assert plane.row_bytes(width) == plane.items(width) * ITEM_BYTES[plane.dtype] == stored[0, 0].nbytes
    assert scheme.vector_bytes(width) == sum(stored[0, 0].nbytes for stored in encoded)


@each_scheme
def test_encoding_a_batch_is_encoding_each(scheme):
    vectors = torch.randn(5, 7, 64, generator=torch.Generator().manual_seed(3)) * 20
    together = round_trip(scheme, vectors)
    alone = torch.stack([torch.stack([round_trip(scheme, vector) for vector in row]) for row in vectors])
    assert torch.equal(together, alone)


def test_integer_codes_span_their_levels():
    """Both ends of the code range are used, so no level is wasted."""
    vectors = torch.linspace(-1, 1, 256)[None]
    codes = SCHEMES["int8"].encode(vectors)[0]
    assert codes.min() == -128 and codes.max() == 127


def test_int4_packs_dimension_j_low_and_j_plus_half_high():
    levels = torch.tensor([[3, -8, 7, 0, -1, 5, -4, 2, 1, -7, 6, -2, 4, -5, -3, -6]])  # all sixteen: the step is 1
    packed, scale, mid = SCHEMES["int4"].encode(levels.float())
    assert packed.shape == (1, 8) and packed.dtype == torch.uint8
    assert scale.item() == 1.0 and mid.item() == 0.0
    for j in range(8):
        assert int(packed[0, j]) & 0xF == int(levels[0, j]) & 0xF
        assert int(packed[0, j]) >> 4 == int(levels[0, j + 8]) & 0xF


def test_tables_know_other_engines_names():
    assert SCHEMES.resolve("fp8_e4m3") == "fp8"
    assert SCHEMES.resolve("int8_per_token_head") == SCHEMES.resolve("q8_0") == "int8"
    assert SCHEMES.resolve("int4_per_token_head") == SCHEMES.resolve("q4_0") == "int4"
    assert SCHEMES.resolve("bfloat16") == "bf16"
