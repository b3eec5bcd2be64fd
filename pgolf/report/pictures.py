"""Every picture of a run, or of two side by side: what it shows, how to read it, and why it is missing where it is."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from matplotlib.figure import Figure

from pgolf.errors import InputError
from pgolf.report import breakdown, scores, sizes, training, weights
from pgolf.report.material import Material
from pgolf.report.plots import Label

Runs = Mapping[Label, Material]
"""How a run is drawn -> the run; at most two."""


class Picture(NamedTuple):
    """One picture of a report."""

    name: str
    """Of its files."""
    section: str
    caption: str
    """How to read it."""
    draw: Callable[[Runs], Figure]
    """InputError where a run does not have what it needs."""


class Missing(NamedTuple):
    """A picture that could not be drawn."""

    picture: Picture
    reason: str


def draw_all(runs: Runs) -> Iterator[tuple[Picture, Figure] | Missing]:
    """Every picture in the order of a report. Where only one of two runs has what it needs, it is drawn alone."""
    for picture in PICTURES:
        choices = [runs] if len(runs) == 1 else [runs, *({name: run} for name, run in runs.items())]
        reasons = list[str]()
        for chosen in choices:
            try:
                alone = "" if len(chosen) == len(runs) else f" Only {next(iter(chosen)).text} has what it needs."
                yield picture._replace(caption=picture.caption + alone), picture.draw(chosen)
                break
            except InputError as error:
                reasons.append(str(error))
        else:
            yield Missing(picture, "; ".join(dict.fromkeys(reasons)))


def _loss(runs: Runs) -> Figure:
    return training.loss_curves(
        {
            name: training.Curve(run.trace["seconds"], run.trace["loss"], run.trace["lr"], run.loop_at)
            for name, run in runs.items()
        }
    )


def _gradients(runs: Runs) -> Figure:
    return training.gradient_norms(
        {label: training.OverTime(run.trace["seconds"], run.trace["grad_norm"]) for label, run in runs.items()}
    )


def _seen(runs: Runs, name: str) -> dict[Label, training.OverTime]:
    return {label: training.OverTime(*run.seen(name)) for label, run in runs.items()}


def _heads(name: str, quantity: str, heading: str) -> Callable[[Runs], Figure]:
    return lambda runs: training.heads_over_time(_seen(runs, name), quantity, heading)


def _lines(name: str, entry: str, quantity: str, heading: str) -> Callable[[Runs], Figure]:
    return lambda runs: training.lines_over_time(_seen(runs, name), entry, quantity, heading)


def _distributions(runs: Runs) -> Figure:
    scale = weights.unit(next(iter(runs.values())).weights)
    return weights.weight_distributions({name: weights.histograms(run.weights, scale) for name, run in runs.items()})


def _classes(runs: Runs) -> Figure:
    return scores.bpb_by_class(
        {name: breakdown.by_class(run.scored, breakdown.describe(run.processor)) for name, run in runs.items()}
    )


def _sizes(runs: Runs) -> Figure:
    return scores.bpb_by_size(
        {name: breakdown.by_length(run.scored) for name, run in runs.items()},
        {name: breakdown.by_position(run.scored) for name, run in runs.items()},
    )


def _gains(runs: Runs) -> Figure:
    return scores.ttt_gains(
        {name: breakdown.ttt_gain(run.scored, run.unadapted, run.clock) for name, run in runs.items()}
    )


PICTURES = (
    Picture(
        "loss", "Training",
        "Training loss of every traced step, and the learning rate as a share of its highest value. The dotted line "
        "marks where depth recurrence is switched on: steps cost more from there on.",
        _loss,
    ),
    Picture(
        "gradient-norms", "Training",
        "Norm of the gradient of each layer's parameters, before the global clip. A layer far above the others takes "
        "the clip's budget from them.",
        _gradients,
    ),
    Picture(
        "query-gains", "Training",
        "Learned factor on the queries, a row per head: larger gains make sharper attention.",
        _heads("q_gain", "query gain", "Query gains by layer and head"),
    ),
    Picture(
        "attention-gates", "Training",
        "What the output of each head is multiplied by, the mean over the same piece of training text: 0 is shut.",
        _heads("attn_gate", "mean opening", "Attention gates by layer and head"),
    ),
    Picture(
        "mlp-gates", "Training",
        "What each group of MLP outputs is multiplied by, the mean over the same piece of training text: 0 is shut.",
        _heads("mlp_gate", "mean opening", "MLP gates by layer and group"),
    ),
    Picture(
        "token-gates", "Training",
        "How much of each layer's change the tokens take, the mean over the same piece of training text.",
        _lines("token_gate", "layer", "mean opening", "Token gates by layer"),
    ),
    Picture(
        "skip-gates", "Training",
        "Mean over channels of sigmoid(gate) of every skip connection: 1 keeps the stream, 0 takes the skip instead.",
        _lines("skip_gate", "skip", "mean gate\n(1: stream only, 0: skip only)", "Gates of the skip connections"),
    ),
    Picture(
        "smear", "Training",
        "How much of the token before is mixed into each token: lambda, or the mean gate where every channel has one.",
        _lines("smear", "smear", "share of the token before", "Smear gate"),
    ),
    Picture(
        "weights", "Weights",
        "Density of the weights before quantization, a row per layer, all in one unit.",
        _distributions,
    ),
    Picture(
        "quantization-errors", "Weights",
        "What quantization lost of each matrix, weighted by the inputs that the matrix sees (H is their covariance), "
        "after low-rank corrections. Logarithmic scale; outside: tensors of no layer.",
        lambda runs: weights.quantization_errors({name: run.errors for name, run in runs.items()}),
    ),
    Picture(
        "bytes", "Bytes",
        "Compressed bytes of the shipped model by what they are for, and by stream of the container. Scales: steps of "
        "the grids, a row each; small: tensors without a grid; header: names and shapes.",
        lambda runs: sizes.bytes_by_stream({name: run.sizes for name, run in runs.items()}),
    ),
    Picture(
        "score-by-source", "Score",
        "Bits per byte of the validation documents of each source, the hardest on top.",
        lambda runs: scores.bpb_by_source(
            {name: breakdown.by_source(run.scored, run.sources) for name, run in runs.items()}
        ),
    ),
    Picture(
        "score-by-size", "Score",
        "Bits per byte by the length of the document, and by how much of it the model had read.",
        _sizes,
    ),
    Picture(
        "score-by-class", "Score",
        "Left: how the score adds up from kinds of tokens. Right: how hard one token of the kind is.",
        _classes,
    ),
    Picture(
        "ttt-gain", "Test-time training",
        "Gain over the same windows with unchanged weights, along the validation stream and over the evaluation clock. "
        "Dots on the left are stretches of a fortieth of the stream, on the right the ends of batches, in the order in "
        "which the method scores.",
        _gains,
    ),
    Picture(
        "ttt-gain-by-position", "Test-time training",
        "The same gain by how much of the document was read before.",
        lambda runs: scores.ttt_gains_by_position(
            {name: breakdown.ttt_by_position(run.scored, run.unadapted) for name, run in runs.items()}
        ),
    ),
)  # fmt: skip
