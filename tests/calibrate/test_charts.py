"""The charts of an asset: which are drawn, that they are the files they say, and the same every time."""

import copy
import logging
import sys
import xml.etree.ElementTree as ElementTree
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from octavo.calibrate import run
from octavo.calibrate.charts import CHARTS, remove_charts, write_charts
from octavo.calibrate.heatmap import treatments

LAYERS, HEADS, WIDTH = 4, 2, 16


def layer(scheme: str, *transforms: str) -> dict:
    return {"scheme": scheme, "transforms": list(transforms)}


ABOUT = {
    "model": "tiny",
    "shape": {"layers": LAYERS, "kv_heads": HEADS, "heads": 4, "head_dim": WIDTH},
    "kv_cache_dtype": "auto:5bit",
    "layers": [
        {
            "k": layer("int8" if n in (1, 2) else "int4", "bias-free", *(["balance"] * (n == 0)), "rotation"),
            "v": layer("int4", "rotation"),
        }
        for n in range(LAYERS)
    ],
    "bytes_per_token": 150.0,
    "page_tokens": 64,
    "kl_predicted": 0.02,
    "kl_measured": 0.03,
    "sensitivity": {
        "schemes": ["int8", "int4"],
        "tokens": 512,
        "k": {"int8": [1e-4, 2e-4, -1e-6, 0.0], "int4": [3e-2, 1e-3, 2e-2, 1e-2]},
        "v": {"int8": [5e-5, 4e-5, 1e-4, 1e-5], "int4": [4e-3, 2e-3, 1e-2, 1e-2]},
    },
}
ALL = {f"{name}.{kind}" for name in CHARTS for kind in ("png", "svg")}


def statistics(biased: bool = False) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for number in range(LAYERS):
        for side in "kv":
            for name in ("absmax", "rms", "first", "turned.max"):
                low = 1.0 if name == "rms" else 2.0
                found[f"layers.{number}.{side}.{name}"] = low + 3 * torch.rand(HEADS, WIDTH, generator=generator)
            found[f"layers.{number}.{side}.turned.min"] = -found[f"layers.{number}.{side}.turned.max"]
        if biased:
            found[f"layers.{number}.k.biased.absmax"] = found[f"layers.{number}.k.absmax"] * 40
    return found


def pixels(file) -> np.ndarray:
    from matplotlib.image import imread

    return imread(file)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("charts")
    assert set(write_charts(folder, ABOUT, statistics())) == ALL
    return folder


def test_the_files_are_what_their_names_say(drawn):
    assert {file.name for file in drawn.iterdir()} == ALL
    for name in CHARTS:
        image = pixels(drawn / f"{name}.png")
        assert min(image.shape[:2]) >= 400 and image[..., :3].std() > 0.02
        root = ElementTree.parse(drawn / f"{name}.svg").getroot()
        assert root.tag.endswith("svg") and len(list(root.iter())) > 50


def test_the_same_bytes_every_time(drawn, tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9}):  # as a user's matplotlibrc would
        write_charts(tmp_path, ABOUT, statistics())
        assert matplotlib.rcParams["font.size"] == 20
    assert {file.name for file in tmp_path.iterdir()} == ALL
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (drawn / file.name).read_bytes(), file.name


def test_without_sensitivities_only_the_outliers(tmp_path):
    about = {key: value for key, value in ABOUT.items() if key != "sensitivity"} | {"kl_predicted": None}
    assert write_charts(tmp_path, about, statistics(biased=True)) == ("outliers.png", "outliers.svg")
    assert {file.name for file in tmp_path.iterdir()} == {"outliers.png", "outliers.svg"}


def test_a_plan_without_a_prediction_is_drawn(tmp_path):
    about = copy.deepcopy(ABOUT) | {"kl_predicted": None, "kl_measured": 0.0}
    assert set(write_charts(tmp_path, about, statistics())) == ALL


def test_an_outlier_is_not_lost_among_many_channels():
    from octavo.calibrate.heatmap import _MOST_COLUMNS, _widest

    row = np.ones(32 * 128 + 3)
    row[1777] = 50.0
    assert len(_widest(row)) <= _MOST_COLUMNS and _widest(row).max() == 50.0


def test_treatments():
    assert treatments(ABOUT, "k") == {"raised": (1, 2), "balanced": (0,), "bias-free": (0, 1, 2, 3)}
    assert treatments(ABOUT, "v") == {}


def test_charts_of_another_calibration_go(drawn, tmp_path):
    for name in ("pareto.png", "kl_by_layer.svg", "mine.png"):
        (tmp_path / name).write_bytes(b"old")
    remove_charts(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.png"]


@pytest.mark.parametrize("cause", ["no matplotlib", "full disk"])
def test_a_calibration_does_not_fail_for_its_charts(tmp_path, caplog, monkeypatch, cause):
    if cause == "no matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        monkeypatch.setattr(run, "write_charts", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    (tmp_path / "pareto.png").write_bytes(b"of another calibration")
    options = SimpleNamespace(out=str(tmp_path), charts=True)
    with caplog.at_level(logging.WARNING, "octavo"):
        assert run._draw(options, ABOUT, statistics()) == ()  # type: ignore[arg-type]
    assert "charts are not" in caplog.text and not list(tmp_path.iterdir())
