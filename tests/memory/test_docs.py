"""The tables in the README and the docs say what the code does."""

import re
from pathlib import Path

import pytest

from octavo.kv.plan import uniform_plan
from octavo.kv.schemes import SCHEMES
from octavo.memory.law import memory_law
from octavo.memory.report import default_dtypes
from octavo.memory.shapes import SHAPES

ROOT = Path(__file__).parents[2]


def test_ladder_of_the_readme():
    spec = SHAPES["llama-7b"]
    rows = re.findall(r"^\| `([\w,-]+)` \| ([\d.]+) \| (\d+) \|", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert [name for name, _, _ in rows] == list(default_dtypes(spec.head_dim))
    for name, bits, mib in rows:
        law = memory_law(spec, uniform_plan(name, spec.layers, spec.head_dim))
        assert (float(bits), int(mib)) == (law.bits_per_number, law.sequence_bytes(2048) / 2**20)


def test_table_of_formats():
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| (\d+) \|$", (ROOT / "docs/formats.md").read_text(), re.MULTILINE)
    assert {name: int(count) for name, count in rows} == {name: s.vector_bytes(128) for name, s in SCHEMES.items()}


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", path.read_text()):
        assert (path.parent / target).exists(), f"{page} links to {target}"


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
