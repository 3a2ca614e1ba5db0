"""Run records and results folders (JSON), and what is made of them: tables, figures, pages, model cards. Imports no torch."""

from mmrl.reports.records import RECORD_NAME, SCHEMA, Metrics, Option, RunRecord, Scores, harmonic_mean, read_record

__all__ = [
    "RECORD_NAME",
    "SCHEMA",
    "Metrics",
    "Option",
    "RunRecord",
    "Scores",
    "harmonic_mean",
    "read_record",
]
