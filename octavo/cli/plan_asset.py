"""What an asset adds to the verb `plan`: its own plan, and plans solved from its sensitivities. No torch: kv_plan.json
is read and no weights are, so that the asset is known to fit the model's shape and not its numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.base.errors import AssetError, UsageError
from octavo.calibrate.budgets import solve_budget
from octavo.calibrate.solve import parse_budget
from octavo.kv.asset import asset_plan, find_asset, read_about
from octavo.kv.plan import KVPlan, uniform_plan
from octavo.memory.report import GivenPlan, Givens, PlanQuestion
from octavo.models.spec import ModelSpec

__all__ = ["given_plans"]

_AUTO = "auto:"


def given_plans(
    named: str | None, folder: Path | None, spec: ModelSpec, question: PlanQuestion, sequences: int
) -> Givens:  # fmt: skip
    """The plans of the asset that was named, or lies in `folder`, by what they are called: `asset:NAME` (or `auto`, if
    the question asks for that) and every `auto:BUDGET` of the question. Raises AssetError or UsageError."""
    budgets = [name for name in question.dtypes if name.startswith(_AUTO)]
    path = named or (find_asset(folder) if folder is not None else None)
    if path is None or named == "off":
        if budgets:
            raise UsageError(
                f"`{budgets[0]}` needs a calibration with sensitivities, and there is none for this model",
                hint="run octavo calibrate --sensitivity and give its folder with --kv-asset",
            )
        return Givens()
    where, about = read_about(path)
    _check_shape(where, about, spec)
    own = "auto" if "auto" in question.dtypes else f"asset:{about['kv_cache_dtype']}"
    plans = {own: GivenPlan(asset_plan(about), about.get("kl_measured"), about.get("kl_predicted"))}
    plans |= {name: _solved(name, where, about, spec, question, sequences) for name in budgets}
    facts = {"path": str(where), "model": about["model"], "measured_on": about.get("held_out")}
    return Givens(plans, facts)


def _solved(
    name: str, where: Path, about: Mapping[str, Any], spec: ModelSpec, question: PlanQuestion, sequences: int
) -> GivenPlan:  # fmt: skip
    sensitivity = about.get("sensitivity")
    if not sensitivity:
        raise AssetError(
            f"{where} has no sensitivities to solve `{name}` from", hint="run octavo calibrate with --sensitivity"
        )
    tokens = question.lengths(spec)[1] * sequences
    budget = parse_budget(name.removeprefix(_AUTO))
    found, pairs = solve_budget(budget, sensitivity, about["shape"], question.page_tokens, tokens)
    layers = (uniform_plan(pair, 1, spec.head_dim, question.rotate).layers[0] for pair in pairs)
    return GivenPlan(KVPlan(name, tuple(layers)), kl_predicted=found.kl)


def _check_shape(where: Path, about: Mapping[str, Any], spec: ModelSpec) -> None:
    shape = {"layers": spec.layers, "kv_heads": spec.kv_heads, "heads": spec.heads, "head_dim": spec.head_dim}
    if about["shape"] != shape:
        raise AssetError(
            f"{where}: calibrated for {about['shape']}, and this model has {shape}",
            hint="calibrate this model, take the asset that belongs to it, or use --kv-asset off",
        )
