"""Run records (JSON) and what is made of them: tables, plots, model cards. Imports no torch."""

from mmrl.reports.records import RECORD_NAME, SCHEMA, Metrics, Option, RunRecord, Scores, harmonic_mean, read_record, read_records
from mmrl.reports.tables import Row, Stat, Summary, summarise, to_csv, to_markdown, to_rich

__all__ = [
    "RECORD_NAME",
    "SCHEMA",
    "Metrics",
    "Option",
    "Row",
    "RunRecord",
    "Scores",
    "Stat",
    "Summary",
    "harmonic_mean",
    "read_record",
    "read_records",
    "summarise",
    "to_csv",
    "to_markdown",
    "to_rich",
]
