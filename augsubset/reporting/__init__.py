"""The doctor, which measures a training loop, and the report on what a run selected."""

from augsubset.reporting.doctor import doctor
from augsubset.reporting.files import choose_pictures, report, write_report
from augsubset.reporting.pictures import Picture
from augsubset.reporting.summary import summarize

__all__ = ["Picture", "choose_pictures", "doctor", "report", "summarize", "write_report"]
