"""The figure: losses of the LSTMs over steps, and errors of the classifiers over images."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.ticker import PercentFormatter

from allyouneed.evidence import TrialResult, draw_curves, panels

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figure(trials: Sequence[TrialResult]) -> "Figure":
    """Draw the recurrent arms as Figures 2 to 4 do, and the classifiers as the lower half of Figure 6 does."""
    drawing, (left, right) = panels(2)

    def curve(prefix: str) -> Callable[[TrialResult], dict[float, float]]:
        return lambda trial: {
            float(name.removeprefix(prefix)): value for name, value in trial.metrics.items() if name.startswith(prefix)
        }

    draw_curves(
        left,
        trials,
        curve("loss_at_"),
        names={"lstm": "LSTM", "bn_lstm": "BN-LSTM", "ln_lstm": "LN-LSTM"},
        title="Reading a held-out novel",
        horizontal="training steps",
        vertical="loss (nats a character)",
    )

    def finish(axes: Any) -> None:
        for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
            which(PercentFormatter(1.0, decimals=0))
        axes.xaxis.set_major_formatter("{x:,.0f}")

    large = max(trial.config["batch"] for trial in trials if trial.config["task"] == "digits")
    draw_curves(
        right,
        trials,
        curve("error_after_"),
        names={
            f"{norm}_{arm}": f"{name}, batch {size}"
            for arm, size in (("large", large), ("4", 4))
            for norm, name in (("none", "no norm"), ("batch", "batch norm"), ("layer", "layer norm"))
        },
        title="Telling digits",
        horizontal="images seen in training",
        vertical="test error",
        logarithmic="y",
        finish=finish,
    )
    return drawing
