"""A run's record as one page, with the same figures as JSON and CSV."""

from augsubset.reporting.files import Shown, run_pictures, write_report, write_run
from augsubset.reporting.pictures import Picture
from augsubset.reporting.summary import summary

__all__ = ["Picture", "Shown", "run_pictures", "summary", "write_report", "write_run"]
