"""The report as Markdown, as it is put into docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterator

from session import Facts


def markdown(report: Facts) -> str:
    """Return the tables of a report; parts that were not run are left out."""
    return "\n".join(
        [*_heading(report), "", *_steps(report), *_reading(report), *_checks(report), *_not_run(report), ""]
    )


def _heading(report: Facts) -> Iterator[str]:
    facts = report["parts"].get("facts", {})
    card = facts.get("gpu", {})
    yield f"### {card.get('name', report['device'])}, {report['date']}"
    yield ""
    words = [
        f"`{report['command']}`",
        f"commit {report['commit']}",
        f"viewalign {report['viewalign']}",
        f"torch {report['torch']}",
        *([f"cuDNN {facts['cudnn']}", f"{facts['cores']} CPU cores"] if facts else []),
    ]
    yield ", ".join(words) + "."
    if "product_tflops" in facts:
        products = ", ".join(f"{name} {value:g}" for name, value in facts["product_tflops"].items())
        yield f"Matrix products: {products} TFLOP/s; copies in memory {facts['copy_gb_per_s']:g} GB/s."


def _steps(report: Facts) -> Iterator[str]:
    rows = {
        **{name: part for name, part in report["parts"].items() if "step_s" in part},
        **report["parts"].get("variants", {}).get("variants", {}),
    }
    rows = {name: row for name, row in rows.items() if "step_s" in row}
    if not rows:
        return
    yield "| step | view | batch | precision | seconds | TFLOP/s | share of products | peak memory | waits |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        peak = row["memory_gb"].get("allocated")
        memory = f"{peak:g} GB" if peak else ""
        waits = row.get("waits", {}).get("a_step", "")
        title = " ".join([name, *row["less_memory"]])
        yield (
            f"| {title} | {row['view'][0]}³ | {row['batch']} | {row['precision']} | {row['step_s']:g} "
            f"| {row['tflops']:g} | {row['share_of_products']:.0%} | {memory} | {waits} |"
        )
    yield ""
    yield "| parts of a step, s | " + " | ".join(PARTS) + " | other |"
    yield "|---|" + "---|" * (len(PARTS) + 1)
    for name, row in rows.items():
        cells = [f"{row['parts_s'].get(part, 0):g}" for part in PARTS]
        yield f"| {name} | " + " | ".join([*cells, f"{row['other_s']:g}"]) + " |"
    yield ""


PARTS = ("views", "networks", "losses", "backward", "optimizer", "teacher")


def _reading(report: Facts) -> Iterator[str]:
    rows = report["parts"].get("reading", {}).get("workers", {})
    if not rows:
        return
    yield "| workers | volumes a second | data wait |"
    yield "|---|---|---|"
    for workers, row in rows.items():
        if "data_wait" in row:
            yield f"| {workers} | {row['volumes_per_second']:g} | {row['data_wait']:.1%} |"
    yield ""


def _checks(report: Facts) -> Iterator[str]:
    if not report["checks"]:
        return
    yield "| check | found | limit | |"
    yield "|---|---|---|---|"
    for row in report["checks"]:
        good = "good" if row["value"] <= row["limit"] else "**missed**"
        yield f"| {row['part']}: {row['what']} | {row['value']:.3g} | {row['limit']:g} | {good} |"
    yield ""


def _not_run(report: Facts) -> Iterator[str]:
    for name, part in report["parts"].items():
        if "skipped" in part:
            yield f"- {name} was skipped: {part['skipped']}"
        for variant, row in part.get("variants", {}).items():
            if "step_s" not in row:
                yield f"- {variant}: {row.get('skipped') or row.get('error')}"
        if "error" in part:
            yield f"- {name} failed: {part['error']}"
