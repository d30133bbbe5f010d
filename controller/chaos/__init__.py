"""Fault campaigns: a real job, faults from outside, and an audit that asks nobody who took part."""

from crescendo.controller.chaos.audit import Broken, audit
from crescendo.controller.chaos.campaign import Campaign, RunRecord
from crescendo.controller.chaos.evidence import Evidence, gather
from crescendo.controller.chaos.report import table, verdict, write_table

__all__ = ["Broken", "Campaign", "Evidence", "RunRecord", "audit", "gather", "table", "verdict", "write_table"]
