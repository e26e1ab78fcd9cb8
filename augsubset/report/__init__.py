"""A run's record as one page, with the same figures as JSON and CSV."""

from augsubset.report.files import Shown, run_pictures, write_report, write_run
from augsubset.report.pictures import Picture
from augsubset.report.summary import summary

__all__ = ["Picture", "Shown", "run_pictures", "summary", "write_report", "write_run"]
