"""What is measured of keys, queries and values: against direct computation, in any order, interrupted and resumed."""

import pytest
import torch
from torch import Tensor

from octavo.base.errors import AssetError
from octavo.calibrate import partial as partials
from octavo.calibrate.forward import Vectors, attention_output, embed, layer_step, project
from octavo.calibrate.observe import Observer, observe
from octavo.calibrate.partial import Partial
from octavo.kv.statistics import check_statistics
from octavo.kv.transform import rotate
from octavo.models.dense import DenseDecoder
from octavo.models.spec import RopeSpec
from tests.calibrate.random_decoder import random_decoder

LENGTHS = (40, 17, 64, 40, 2)
KEY = "weights windows"


def windows() -> list[Tensor]:
    draw = torch.Generator().manual_seed(4)
    return [torch.randint(0, 64, (length,), generator=draw) for length in LENGTHS]


MODELS = {
    "plain": {},
    "bias and window": {"qkv_bias": True, "windows": (None, 16)},
    "half turned": {"kv_heads": 4, "rope": RopeSpec(rotary_dim=8)},
}


@pytest.fixture(params=MODELS.values(), ids=list(MODELS))
def model(request) -> DenseDecoder:
    return random_decoder(64, **request.param)[0]


def seen(model: DenseDecoder) -> list[list[Vectors]]:
    """Per layer, the vectors of every window."""
    layers: list[list[Vectors]] = [[] for _ in range(model.spec.layers)]
    for tokens in windows():
        hidden = embed(model, tokens)
        for layer, found in enumerate(layers):
            vectors = project(model, layer, hidden)
            mixed = attention_output(vectors.q, vectors.k, vectors.v, model.spec.window(layer))
            hidden = layer_step(model, layer, hidden, mixed)
            found.append(vectors)
    return layers


def directly(found: list[Vectors], biased: bool) -> dict[str, Tensor]:
    """The definitions (octavo/kv/statistics.py), over all tokens at once, fp64."""
    keys = [vectors.k if biased else vectors.k_free for vectors in found]
    values = [vectors.v for vectors in found]
    kv_heads = keys[0].shape[1]
    q = torch.cat([vectors.q[1:] for vectors in found]).double().unflatten(1, (kv_heads, -1))  # [T, G, H / G, D]
    want = {
        "q.absmax": q.abs().amax((0, 2)),
        "q.rms": q.square().mean((0, 2)).sqrt(),
        "q.moment": torch.einsum("tghd,tghe->gde", q, q) / (q.shape[0] * q.shape[2]),
    }
    for name, parts in (("k", keys), ("v", values)):
        side = torch.cat([part[1:] for part in parts])
        turned, side = rotate(side).double(), side.double()
        want |= {
            f"{name}.min": side.amin(0), f"{name}.max": side.amax(0), f"{name}.absmax": side.abs().amax(0),
            f"{name}.rms": side.square().mean(0).sqrt(),
            f"{name}.turned.min": turned.amin(0), f"{name}.turned.max": turned.amax(0),
            f"{name}.first": torch.stack([part[0] for part in parts]).abs().amax(0).double(),
        }  # fmt: skip
        want |= {f"{name}.clip": best_share(side), f"{name}.turned.clip": best_share(turned)}
        if name == "k":
            want |= {"k.mean": side.mean(0), "k.moment": torch.einsum("tgd,tge->gde", side, side) / len(side)}
    if found[0].k is not found[0].k_free:
        want["k.biased.absmax"] = torch.cat([vectors.k for vectors in found]).abs().amax(0).double()
    return want


def best_share(side: Tensor) -> Tensor:
    """The definition, by trying: of each head's absmax, the share at which quantizing to 255 levels errs least."""
    found = []
    for head in side.abs().transpose(0, 1).flatten(1):
        reach = head.max() * torch.linspace(0.2, 1.0, 81, dtype=torch.float64)[:, None]
        error = (head - reach).clamp_min(0).square().sum(1) + len(head) * (reach[:, 0] / 127) ** 2 / 12
        found.append(0.2 + 0.01 * int(error.argmin()))
    return torch.tensor(found, dtype=torch.float64)


def run(model: DenseDecoder, folder, biased: bool = False, texts: list[Tensor] | None = None) -> dict[str, Tensor]:
    texts = windows() if texts is None else texts
    return observe(model, texts, biased, Partial(folder, KEY), lambda *step: None)


def close(got: dict[str, Tensor], want: dict[str, Tensor], share: float) -> None:
    """Within a share of each tensor's largest number."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        error = (got[name].double() - tensor.double()).abs().max() / tensor.abs().max()
        allowed = 0.03 if name.endswith(".clip") else share  # sizes are counted in bins of a 32nd of an octave
        assert got[name].shape == tensor.shape and error <= allowed, f"{name}: off by {float(error):.1e}"


@pytest.mark.parametrize("biased", [False, True])
def test_they_are_what_they_are_called(model, tmp_path, biased):
    got = run(model, tmp_path, biased)
    want = {
        f"layers.{layer}.{name}": tensor
        for layer, found in enumerate(seen(model))
        for name, tensor in directly(found, biased).items()
    }
    close(got, want, 2e-6)
    assert {tensor.dtype for tensor in got.values()} == {torch.float32}
    spec = model.spec
    check_statistics(got, spec.layers, spec.kv_heads, spec.head_dim, "what was observed")


def test_the_order_of_windows_does_not_matter(model, tmp_path):
    want = run(model, tmp_path)
    for order in ((4, 3, 2, 1, 0), (2, 4, 0, 3, 1)):
        close(run(model, tmp_path, texts=[windows()[number] for number in order]), want, 1e-6)


def test_progress_counts_windows(model, tmp_path):
    steps: list[tuple[str, int, int]] = []
    observe(model, windows(), False, Partial(tmp_path, KEY), lambda *step: steps.append(step))
    assert steps == [("statistics", done, len(LENGTHS)) for done in range(len(LENGTHS) + 1)]


def test_a_model_that_breaks_is_named(tmp_path):
    model, _ = random_decoder(64)
    model.embedding[7] = float("nan")
    texts = [torch.tensor([1, 2, 3]), torch.tensor([1, 7, 3])]
    with pytest.raises(AssetError, match=r"window 1: .* not finite") as caught:
        run(model, tmp_path, texts=texts)
    assert caught.value.hint


# interrupted


class Interrupted(Exception):
    pass


def interrupted(model: DenseDecoder, folder, after: int, key: str = KEY) -> None:
    """A run that ends when `after` windows are done."""

    def progress(what: str, done: int, total: int) -> None:
        if done == after:
            raise Interrupted

    with pytest.raises(Interrupted):
        observe(model, windows(), False, Partial(folder, key), progress)


@pytest.fixture
def at_once(monkeypatch) -> None:
    """The state is kept after every window."""
    monkeypatch.setattr(partials, "_KEPT_EVERY_SECONDS", 0.0)


def same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("after", range(1, len(LENGTHS) + 1))
def test_it_goes_on_where_it_was(model, tmp_path, at_once, after):
    want = run(model, tmp_path / "whole")
    interrupted(model, tmp_path, after)
    done, _ = Partial(tmp_path, KEY).load()
    assert done == after
    same(run(model, tmp_path), want)
    Partial(tmp_path, KEY).remove()
    assert not list(tmp_path.glob("*.*"))


def test_what_is_kept_is_used(tmp_path, at_once):
    """Other windows at the front, which a run that goes on does not look at."""
    model, _ = random_decoder(64)
    want = run(model, tmp_path / "whole")
    interrupted(model, tmp_path, 3)
    same(run(model, tmp_path, texts=[torch.zeros(9, dtype=torch.int64)] * 3 + windows()[3:]), want)


def test_the_state_of_another_run_is_not_used(tmp_path, at_once):
    model, _ = random_decoder(64)
    want = run(model, tmp_path / "whole")
    interrupted(model, tmp_path, 3, key="weights other windows")
    assert Partial(tmp_path, KEY).load() == (0, {})
    same(run(model, tmp_path), want)


DAMAGE = {
    "empty": lambda raw: b"",
    "cut": lambda raw: raw[: len(raw) // 2],
    "not one of ours": lambda raw: b"text" * 100,
    "header spoiled": lambda raw: raw[:20] + b"\xff" * 20 + raw[40:],
    "without a count": lambda raw: raw.replace(b'"windows"', b'"widness"'),
    "a count of letters": lambda raw: raw.replace(b'"windows":"3"', b'"windows":"x"'),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_state_is_not_used(tmp_path, at_once, damage):
    model, _ = random_decoder(64)
    want = run(model, tmp_path / "whole")
    interrupted(model, tmp_path, 3)
    file = Partial(tmp_path, KEY).file
    assert damage(file.read_bytes()) != file.read_bytes()
    file.write_bytes(damage(file.read_bytes()))
    assert Partial(tmp_path, KEY).load() == (0, {})
    same(run(model, tmp_path), want)


def test_nothing_is_kept_of_a_short_run(tmp_path):
    model, _ = random_decoder(64)
    interrupted(model, tmp_path, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["a file in the way", "a full disk"])
def test_a_state_that_cannot_be_kept_is_no_reason_to_stop(tmp_path, at_once, monkeypatch, caplog, place):
    model, _ = random_decoder(64)
    want = run(model, tmp_path / "whole")
    (tmp_path / "out").write_text("")
    if place == "a full disk":
        (tmp_path / "out").unlink()
        monkeypatch.setattr("safetensors.torch.save_file", full)
    same(run(model, tmp_path / "out"), want)
    assert "cannot keep the state" in caplog.text
    assert not list(tmp_path.rglob("*.new"))


def full(state: dict[str, Tensor], path, metadata: dict[str, str]) -> None:
    path.write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_the_observer_alone():
    """Two windows of three tokens, by hand: one layer, one head, two dimensions."""
    observer = Observer()
    for sign in (1.0, -1.0):
        k = torch.tensor([[100.0, 0.0], [1.0, 2.0], [3.0, -4.0]])[:, None] * sign
        observer.take(0, Vectors(q=k / 2, k=k, k_free=k, v=k.abs()), biased=True)
    statistics = observer.statistics().items()
    found = {name.removeprefix("layers.0."): tensor.flatten().tolist() for name, tensor in statistics}
    assert found["k.first"] == [100, 0] and found["k.mean"] == [0, 0]
    assert found["k.min"] == [-3, -4] and found["k.max"] == [3, 4] and found["v.min"] == [1, 2]
    assert found["k.moment"] == [5, -5, -5, 10] and found["q.moment"] == [1.25, -1.25, -1.25, 2.5]
    assert found["k.rms"] == pytest.approx([5**0.5, 10**0.5])
