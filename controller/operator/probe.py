"""`python -m crescendo.controller.operator.probe ADDRESS`: whether the operator serves its cluster.

`helm test` runs it. Asks the operator's metrics when it listed all RLJobs last: it can list them only where the API
server serves the definition, its network policy lets it out, and its role lets it read. Exits 0 when that was lately.
"""

import argparse
import sys
import time
import urllib.request
from typing import Final

from prometheus_client.parser import text_string_to_metric_families

RESYNC_TIME: Final = "crescendo_operator_resync_time_seconds"
CALL_S: Final = 10.0
PAUSE_S: Final = 1.0
MARGIN_S: Final = 60.0  # of a listing that takes long, and of clocks of two nodes


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="crescendo.controller.operator.probe", description="Tries the operator.")
    parser.add_argument("address", metavar="ADDRESS", help="host:port of the operator's metrics")
    parser.add_argument("--resync", type=float, default=30.0, metavar="SECONDS", help="its resyncSeconds (30)")
    parser.add_argument("--patience", type=float, default=60.0, metavar="SECONDS", help="tries so long (60)")
    options = parser.parse_args()
    give_up = time.monotonic() + options.patience
    while (problem := look(options.address, options.resync)) and time.monotonic() < give_up:
        time.sleep(PAUSE_S)
    print(f"operator: {problem or 'lists RLJobs'}")
    return 1 if problem else 0


def look(address: str, resync_s: float) -> str:
    """What is wrong; empty when all RLJobs were listed within the last resync."""
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=CALL_S) as answer:
            text = answer.read().decode()
    except OSError as error:
        return f"{address} does not answer: {error}; is the pod there, and does a network policy let this one in?"
    found = {one.name: one.value for family in text_string_to_metric_families(text) for one in family.samples}
    listed = found.get(RESYNC_TIME, 0.0)
    if not listed:
        return "has never listed RLJobs: its log says why (the definition, its role, the API server's ports)"
    age_s = time.time() - listed
    if age_s > resync_s + MARGIN_S:
        return f"listed RLJobs {age_s:.0f} s ago, and does so every {resync_s:.0f} s: its log says why"
    return ""


if __name__ == "__main__":
    sys.exit(main())
