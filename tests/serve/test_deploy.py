"""The files for deployment speak of metrics and flags that exist."""

import json
import re
from pathlib import Path

from octavo.serve.metrics import Metrics

ROOT = Path(__file__).parents[2]


def served() -> set[str]:
    text = Metrics("m").render()[0].decode()
    return set(re.findall(r"^(octavo:\w+)", text, re.M)) | set(re.findall(r"^# TYPE (octavo:\w+)", text, re.M))


def test_the_board_asks_for_metrics_that_are_served():
    board = json.loads((ROOT / "docker/grafana/boards/octavo.json").read_text())
    queries = [one["expr"] for panel in board["panels"] for one in panel["targets"]]
    asked = {name for query in queries for name in re.findall(r"octavo:\w+", query)}
    assert len(asked) > 10
    assert {name.removesuffix("_bucket") for name in asked} <= served(), asked - served()


def test_the_guide_names_metrics_that_are_served():
    named = set(re.findall(r"`(octavo:\w+)`", (ROOT / "docs/deploy.md").read_text()))
    assert named and named <= served(), named - served()


def test_the_unit_and_the_images_start_a_verb_that_is_there():
    from octavo.cli.serve import ServeFlags

    files = ("octavo.service", "Dockerfile.cpu", "Dockerfile.cuda")
    text = "".join((ROOT / "docker" / name).read_text() for name in files)
    flags = {flag.replace("-", "_") for flag in re.findall(r"--((?:host|log|port|api)[a-z-]*)", text)}
    assert flags <= set(ServeFlags.__dataclass_fields__), flags
