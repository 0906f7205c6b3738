"""A plan for a person and for a program."""

from __future__ import annotations

from typing import Any

from kiln.plan import Plan, Stage


def as_data(plan: Plan) -> dict[str, Any]:
    """The plan as JSON: seconds are floats, digests 64 hex digits."""
    return {
        "expected_s": plan.expected_s,
        "images": {stage.tag: stage.digest for stage in plan.finals},
        "substitutions": {stage.tag: stage.substitutions for stage in plan.finals},
        "stages": [
            {
                "name": stage.name,
                "kind": stage.kind,
                "digest": stage.digest,
                "parent": stage.parent,
                "products": dict(stage.products),
                "images": list(stage.images),
                "tag": stage.tag,
                "state": stage.state,
                "why": list(stage.why),
                "expected_s": stage.expected_s,
            }
            for stage in plan.stages
        ],
    }


def as_text(plan: Plan, *, most_reasons: int = 3) -> str:
    """The plan as a table, and what each image has substituted; stages that nothing needs are left out."""
    rows = [("STAGE", "DIGEST", "STATE", "TIME", "FOR", "WHY")]
    shown = [stage for stage in plan.stages if stage.state != "unneeded"]
    for stage in shown:
        reasons = list(stage.why[:most_reasons])
        if len(stage.why) > most_reasons:
            reasons.append(f"and {len(stage.why) - most_reasons} more")
        rows.append(
            (
                stage.name,
                stage.digest[:12],
                "cached" if stage.state == "cached" else "to build",
                duration(stage.expected_s) if stage.state == "missing" else "",
                " ".join(stage.images),
                "; ".join(reasons),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = [
        "  ".join((*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[5])).rstrip()
        for row in rows
    ]
    lines += [
        f"{stage.tag} substitutes {', '.join(stage.substitutions)}" for stage in plan.finals if stage.substitutions
    ]
    lines.append(summary(plan))
    return "\n".join(lines)


def summary(plan: Plan) -> str:
    """One line: how much is to build, and how long that took last time."""
    missing = plan.missing
    if not missing:
        return f"{len(plan.finals)} images up to date, nothing to build"
    unknown = sum(1 for stage in missing if stage.expected_s is None)
    known = sum(stage.expected_s or 0.0 for stage in missing)
    time = f"about {duration(known)} one after the other" if known else "no earlier run to estimate from"
    if known and unknown:
        time += f", {unknown} of them never timed"
    return f"{len(missing)} stages to build, {time}"


def duration(seconds: float | None) -> str:
    """``75.2`` as ``1m15s``; empty when unknown."""
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 60}m{whole % 60:02d}s" if whole >= 60 else f"{whole}s"


def stage_line(stage: Stage) -> str:
    """A stage in one line, as progress and errors name it."""
    return f"{stage.name} ({', '.join(stage.images)})"
