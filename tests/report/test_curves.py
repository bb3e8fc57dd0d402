"""The report shows what was logged, and only that."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread
from report.made import log as write

from rlhf_jax import report
from rlhf_jax.report import main, read_curves, write_report
from rlhf_jax.report.curves import moving_average
from rlhf_jax.rundir import RunError


def drawn(monkeypatch, run):
    """The figure that a report saves."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda self, *_, **__: figures.append(self))
    write_report(run)
    return [axes for axes in figures[0].axes if axes.get_visible()]


def test_curves_of_a_run_and_of_its_stages(tmp_path):
    write(tmp_path, [(1, {"objective/score": 1.0})])
    write(tmp_path / "sft", [(1, {"sft/loss": 3.0}), (2, {"sft/eval_loss": 2.0})])
    write(tmp_path / "sft" / "deeper", [(1, {"value/loss": 1.0})])
    curves = read_curves(tmp_path)
    assert sorted(curves) == ["objective/score", "sft/eval_loss", "sft/loss"]
    steps, values = curves["sft/eval_loss"]
    assert (steps.tolist(), values.tolist()) == ([2], [2.0])


def test_a_metric_in_two_stages_is_refused(tmp_path):
    write(tmp_path / "a", [(1, {"sft/loss": 3.0})])
    write(tmp_path / "b", [(1, {"sft/loss": 4.0})])
    with pytest.raises(RunError, match="b/metrics.jsonl: sft/loss is in another"):
        read_curves(tmp_path)


def test_what_no_panel_shows_may_be_in_two_stages(tmp_path):
    write(tmp_path / "a", [(1, {"sft/loss": 3.0, "optim/grad_norm": 1.0})])
    write(tmp_path / "b", [(1, {"reward/loss": 4.0, "optim/grad_norm": 1.0})])
    assert sorted(read_curves(tmp_path)) == ["reward/loss", "sft/loss"]


def test_picture_is_1600_pixels_wide_and_not_empty(tmp_path):
    write(tmp_path, [(i, {"sft/loss": 1 / i, "reward/loss": 1.0}) for i in (1, 2, 3)])
    picture = imread(write_report(tmp_path))
    assert picture.shape[1] == 1600
    assert np.std(picture[..., :3]) > 0.05


def test_only_panels_with_a_metric(tmp_path, monkeypatch):
    rows = [(1, {"sft/loss": 3.0, "objective/kl": 0.0, "policy/ratio": 1.0})]
    write(tmp_path, rows)
    titles = [axes.get_title("left") for axes in drawn(monkeypatch, tmp_path)]
    assert titles == ["Supervised fine-tuning: loss", "KL to the reference"]


def test_every_panel_has_title_labels_and_its_curves(tmp_path, monkeypatch):
    names = [name for panel in report.PANELS for name in panel.metrics]
    assert len(names) == len(set(names))
    write(tmp_path, [(s, {n: s * 1.5 for n in names}) for s in (1, 2)])
    panels = drawn(monkeypatch, tmp_path)
    assert len(panels) == len(report.PANELS)
    for axes, panel in zip(panels, report.PANELS, strict=True):
        assert axes.get_title("left") and axes.get_xlabel() and axes.get_ylabel()
        assert len(axes.lines) == len(panel.metrics)
        for line in axes.lines:
            np.testing.assert_array_equal(line.get_xdata(), [1, 2])
            np.testing.assert_array_equal(line.get_ydata(), [1.5, 3.0])
        assert (axes.get_legend() is not None) == (len(panel.metrics) > 1)


def test_long_curves_get_a_moving_average(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).normal(size=200)
    write(tmp_path, [(i, {"sft/loss": x}) for i, x in enumerate(noise)])
    raw, average = drawn(monkeypatch, tmp_path)[0].lines
    np.testing.assert_array_equal(raw.get_ydata(), noise)
    assert np.std(average.get_ydata()) < 0.5 * np.std(noise)


def test_moving_average_by_hand():
    # Five points: reach 1. NaN counts for nothing, the ends have a shorter window.
    values = np.array([1.0, 2.0, np.nan, 4.0, 8.0])
    np.testing.assert_allclose(
        moving_average(values), [1.5, 1.5, 3.0, 6.0, 6.0], rtol=1e-15
    )
    gone = moving_average(np.array([np.nan, np.inf, np.nan, np.nan, 1.0]))
    np.testing.assert_array_equal(np.isnan(gone), [True, True, True, False, False])


def test_no_metrics_and_no_known_metrics(tmp_path):
    with pytest.raises(RunError, match=r"no metrics\.jsonl here"):
        write_report(tmp_path)
    write(tmp_path, [(1, {"mine": 1.0})])
    with pytest.raises(RunError, match="none of its metrics .* sft/loss,"):
        write_report(tmp_path)


def test_command_line(tmp_path, capsys):
    write(tmp_path, [(1, {"sft/loss": 3.0})])
    assert main([str(tmp_path)]) == 0
    made = [f"{tmp_path}/report.{kind}" for kind in ("png", "html")]
    assert capsys.readouterr().out.split() == made
    assert main([str(tmp_path / "none")]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
