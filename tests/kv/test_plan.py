"""Names of cache plans: what is accepted, what it becomes, what is refused and how."""

import pytest

from octavo.base.errors import BadValue, OctavoError, UnknownChoice
from octavo.kv.plan import DEFAULT_DTYPE, parse_dtype, uniform_plan
from octavo.kv.schemes import SCHEMES


@pytest.mark.parametrize("name", SCHEMES)
def test_one_name_is_both_sides(name):
    assert [scheme.name for scheme in parse_dtype(name)] == [name, name]
    assert uniform_plan(name, layers=2, head_dim=64).name == name


@pytest.mark.parametrize("text", ["int8,int4", "8,4", "int8, int4", "q8_0,q4_0", " int8 ,int4 "])
def test_pairs_are_key_then_value(text):
    assert [scheme.name for scheme in parse_dtype(text)] == ["int8", "int4"]
    assert uniform_plan(text, layers=2, head_dim=64).name == "int8,int4"


@pytest.mark.parametrize("text", ["", ",", "int8,", ",int8", "int8,int4,int4"])
def test_malformed_names(text):
    with pytest.raises(BadValue) as caught:
        parse_dtype(text)
    assert caught.value.hint


@pytest.mark.parametrize("text", ["4", "8"])
def test_legacy_numbers_are_explained(text):
    with pytest.raises(BadValue, match="ambiguous"):
        parse_dtype(text)


def test_near_name_is_suggested():
    with pytest.raises(UnknownChoice) as caught:
        parse_dtype("int88")
    assert "int8" in (caught.value.hint or "")
    assert "int4" in caught.value.message


@pytest.mark.parametrize("text", ["auto", "auto:24GiB"])
def test_auto_is_refused_until_it_exists(text):
    with pytest.raises(OctavoError, match="auto"):
        parse_dtype(text)


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_rotation_follows_the_scheme_unless_told(scheme):
    for rotate, rotated in (("auto", scheme.rotates), ("on", True), ("off", False)):
        layer = uniform_plan(scheme.name, layers=1, head_dim=64, rotate=rotate).layers[0]
        assert (layer.key.rotated, layer.value.rotated) == (rotated, rotated)


def test_unknown_rotation():
    with pytest.raises(BadValue, match="maybe"):
        uniform_plan("int8", layers=1, head_dim=64, rotate="maybe")  # pyright: ignore[reportArgumentType]


def test_odd_head_width_cannot_be_packed_in_pairs():
    with pytest.raises(BadValue, match="33"):
        uniform_plan("int4", layers=1, head_dim=33)
    with pytest.raises(BadValue, match="33"):
        uniform_plan("int8,int4", layers=1, head_dim=33)
    uniform_plan("int8", layers=1, head_dim=33)


def test_fingerprints_differ_where_bytes_differ():
    plans = [
        uniform_plan(dtype, layers, 64, rotate)
        for dtype in (*SCHEMES, "int8,int4", "int4,int8")
        for layers in (1, 2)
        for rotate in ("on", "off")
    ]
    assert len({plan.fingerprint() for plan in plans}) == len(plans)
    assert uniform_plan("q8_0", 2, 64).fingerprint() == uniform_plan("int8", 2, 64).fingerprint()


def test_describe_counts_layers():
    assert uniform_plan("int8,int4", 30, 64).describe() == "K int8+rotation, V int4+rotation (30 layers)"


def test_default_is_in_the_table():
    assert DEFAULT_DTYPE in SCHEMES
