"""Claims, trials, the runner, recorded results, verdicts, figures and the report: does the claim hold, with numbers?"""

from .claims import (
    Better,
    Claim,
    Equivalent,
    Exact,
    Finding,
    Reading,
    Resolution,
    Trend,
    TrialResult,
    Verdict,
)
from .context import Context
from .experiment import SCALES, Experiment, Scale, ScaleName, SettingError
from .figures import curves_figure, draw_curves, panels, save_figure
from .results import ResultsError, judge_again, read_results, record, trials_of, verify, write_results
from .runner import Progress, Run, plan, run, runs_folder, usable_cores
from .stages import Stage
from .statistics import Interval, mean_interval
from .trial import Record, Task

__all__ = [
    "SCALES",
    "Better",
    "Claim",
    "Context",
    "Equivalent",
    "Exact",
    "Experiment",
    "Finding",
    "Interval",
    "Progress",
    "Reading",
    "Record",
    "Resolution",
    "ResultsError",
    "Run",
    "Scale",
    "ScaleName",
    "SettingError",
    "Stage",
    "Task",
    "Trend",
    "TrialResult",
    "Verdict",
    "curves_figure",
    "draw_curves",
    "judge_again",
    "mean_interval",
    "panels",
    "plan",
    "read_results",
    "record",
    "run",
    "runs_folder",
    "save_figure",
    "trials_of",
    "usable_cores",
    "verify",
    "write_results",
]
