"""What a campaign says: a Markdown table by fault and victim, and one JSON object."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from crescendo.common.runfolder import write_atomically
from crescendo.controller.chaos.campaign import RunRecord
from crescendo.controller.chaos.inject import Hit

BEGIN, END = "<!-- chaos:begin -->", "<!-- chaos:end -->"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 100) * len(ordered) // 100) - 1)] if ordered else 0.0


def table(records: Iterable[RunRecord]) -> str:
    """One row for each kind of fault and victim, and one for all."""
    rows: dict[tuple[str, str], list[Hit]] = defaultdict(list)
    for hit in (hit for record in records for hit in record.hits):
        rows[hit.fault.kind, hit.victim].append(hit)
    lines = [
        "| fault | victim | count | seconds to the next completed step, p50 | p95 | tokens only in engines, sum |",
        "|---|---|---|---|---|---|",
        *(_row(*name, hits) for name, hits in sorted(rows.items())),
        _row("all", "", [hit for hits in rows.values() for hit in hits]),
    ]
    return "\n".join(lines)


def _row(fault: str, victim: str, hits: Sequence[Hit]) -> str:
    seconds = [hit.seconds for hit in hits if hit.recovered_at]
    middle, late = (f"{percentile(seconds, share):.1f}" if seconds else "-" for share in (0.5, 0.95))
    return f"| {fault} | {victim} | {len(hits)} | {middle} | {late} | {sum(hit.unflushed for hit in hits)} |"


def verdict(records: Sequence[RunRecord], num_faults: int, seconds: float) -> dict[str, Any]:
    """The campaign in numbers. held: 1 when every promise was kept, every run finished and every fault was done."""
    broken = [(record.name, one) for record in records for one in record.broken]
    hits = [hit for record in records for hit in record.hits]
    recovered = [hit.seconds for hit in hits if hit.recovered_at]
    finished = sum(record.finished for record in records)
    return {
        "held": int(not broken and finished == len(records) and len(hits) >= num_faults),
        "faults": len(hits),
        "runs": len(records),
        "finished": finished,
        "lost": sum(one.promise == "ledger" for _, one in broken),
        "duplicated": sum(one.promise == "once" for _, one in broken),
        "unattested": sum(one.promise == "attested" for _, one in broken),
        "silent_waits": sum(one.promise == "silence" for _, one in broken),
        "left_behind": sum(one.promise == "left behind" for _, one in broken),
        "resumes": sum(record.resumes for record in records),
        "recovery_s_p50": round(percentile(recovered, 0.5), 1),
        "recovery_s_p95": round(percentile(recovered, 0.95), 1),
        "tokens_regenerated_at_most": sum(hit.unflushed for hit in hits),
        "seconds": round(seconds, 1),
        "broken": [f"{name}: {one.promise}: {one.what}" for name, one in broken],
    }


def write_table(path: Path, command: str, text: str) -> None:
    """Puts a table and the command that made it between the markers of a document; raises ValueError without them."""
    document = path.read_text()
    before, _, rest = document.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"{path} has no lines {BEGIN} and {END}")
    write_atomically(path, f"{before}{BEGIN}\n\n    {command}\n\n{text}\n\n{END}{after}")
