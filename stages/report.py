"""Pictures and curves of the run; a side stage on which nothing depends."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.console import progress, stage_main
from pgolf.report.curves import first_above, write_curve
from pgolf.report.plots import bytes_by_group, loss_curve


def report(params: Path = paths.PARAMS) -> None:
    """Draw the loss curve and the bytes by stream; write the curve as CSV for `dvc plots`."""
    trace, meta = artifacts.load(paths.TRACE, schema="pgolf.trace", made_by="train")
    compressed = artifacts.read_json(paths.metrics("compress"), "compress")
    with progress("report"):
        series = {name: trace[name].tolist() for name in ("step", "seconds", "lr", "loss")}
        write_curve(paths.REPORT / "loss.csv", series)
        train = meta["params"]["train"]
        budget = train["steps"] or train["seconds"] - train["reserve_seconds"]
        axis = series["step"] if train["steps"] else series["seconds"]
        switched = first_above(axis, train["loop_at"] * budget, series["seconds"])
        loss_curve(paths.REPORT / "loss.png", series["seconds"], series["loss"], series["lr"], switched)
        total = ("bytes_model", "bytes_header")
        sizes = {
            k.removeprefix("bytes_"): v for k, v in compressed.items() if k.startswith("bytes_") and k not in total
        }
        bytes_by_group(paths.REPORT / "bytes.png", sizes | {"header": compressed["bytes_header"]})


if __name__ == "__main__":
    stage_main(report)
