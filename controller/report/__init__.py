"""What a finished run leaves for people: summary.json, a plot, a table."""

from crescendo.controller.report.plot import plot_run
from crescendo.controller.report.summary import build_summary, write_report
from crescendo.controller.report.table import render_summary

__all__ = ["build_summary", "plot_run", "render_summary", "write_report"]
