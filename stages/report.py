"""Pictures and curves of the run; a side stage on which nothing depends. `pgolf report` makes a page of them."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.console import progress, stage_main
from pgolf.data.config import DataConfig
from pgolf.params import section
from pgolf.report import plots
from pgolf.report.curves import write_curve
from pgolf.report.material import Material
from pgolf.report.pictures import Missing, draw_all
from pgolf.runs import load_run


def report(params: Path = paths.PARAMS) -> None:
    """Draw every picture that this run has the material for, as PNG and SVG; the curve as CSV for `dvc plots`."""
    run = Material(load_run("workspace"), Path(section(params, "data", DataConfig).val))
    with progress("report") as show, artifacts.atomic_folder(paths.REPORT) as folder:
        write_curve(folder / "loss.csv", run.curve)
        for drawn in draw_all({plots.Label("this run"): run}):
            if isinstance(drawn, Missing):
                continue
            picture, figure = drawn
            show(picture.name)
            for ending in ("png", "svg"):
                plots.save(figure, folder / ending / f"{picture.name}.{ending}")


if __name__ == "__main__":
    stage_main(report)
