"""The figure: held-out loss by structure, by objective, and by task for one model and for a model a task."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from allyouneed.evidence import TrialResult
from allyouneed.evidence.figures import COLOURS, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STRUCTURES: Mapping[str, str] = {
    "bert": "encoder–decoder,\nrestoring",
    "prefix": "prefix LM,\nrestoring",
    "causal": "LM,\nnext token",
    "continuing": "encoder–decoder,\nnext token",
}
"""Rows of Table 2 by arm."""
OBJECTIVES: Mapping[str, str] = {
    "bert": "BERT-style",
    "continuing": "prefix LM",
    "deshuffling": "deshuffling",
    "none": "no pre-\ntraining",
    "blind": "blind",
}
"""Rows of Table 4 by arm, the last of Table 1, and a model that does not see what it is asked."""
HOLDERS: Mapping[str, str] = {"bert": "a model a task", "mixture": "one model"}
"""Rows of Table 12 by arm."""


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw what Tables 2, 4 and 12 compare: each seed a dot, each mean a bar."""
    drawn, (structures, objectives, tasks) = panels(3)
    for axes, names, title in (
        (structures, STRUCTURES, "Structures at equal compute"),
        (objectives, OBJECTIVES, "Objectives at equal compute"),
    ):
        for place, arm in enumerate(names):
            dots(axes, place, [trial.metrics["loss"] for trial in trials if trial.arm == arm], COLOURS[0])
        finish(axes, list(names.values()), title, "nats a token of held-out answers")
    known = next((trial.config["tasks"] for trial in trials), [])
    for number, (arm, name) in enumerate(HOLDERS.items()):
        own = [trial for trial in trials if trial.arm == arm]
        for place, task in enumerate(known):
            values = [trial.metrics[f"{task}_loss"] for trial in own]
            dots(tasks, place + 0.3 * number - 0.15, values, COLOURS[number], name if place == 0 else None)
    finish(tasks, [task.replace("_", "\n") for task in known], "One model for all tasks", "nats a token of its answers")
    if tasks.lines:
        tasks.legend(frameon=False)
    return drawn


def dots(axes: Any, place: float, values: Sequence[float], colour: str, name: str | None = None) -> None:
    """Draw the seeds of an arm and their mean."""
    if not values:
        return
    axes.plot([place] * len(values), values, "o", color=colour, alpha=0.5, markersize=4)
    mean = sum(values) / len(values)
    axes.plot([place - 0.12, place + 0.12], [mean, mean], color=colour, linewidth=2.5, label=name)


def finish(axes: Any, names: Sequence[str], title: str, vertical: str) -> None:
    """Name what is drawn."""
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel(vertical)
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(True, axis="y", color="#dddddd", linewidth=0.6)
