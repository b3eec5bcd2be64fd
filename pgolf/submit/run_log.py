"""A run as the log that reviewers of the challenge look for: the lines of PR 1855's program, in its order.

A stage writes metrics and a trace, not text, so the log is written afterwards from them and says so in its first line.
Names of lines are the published ones, because reviewers and their scripts search for them.
"""

from collections.abc import Iterator, Mapping

from pgolf import artifacts, paths
from pgolf.config import build
from pgolf.model.config import ModelConfig
from pgolf.model.gpt import matrix_inputs
from pgolf.params import dotted
from pgolf.rules import Rules
from pgolf.submit.evidence import Evidence
from pgolf.train.config import TrainConfig
from pgolf.train.schedule import progress

FINAL = {"none": "quantized_sliding_window", "chunk": "quantized_ttt", "phased": "quantized_ttt_phased"}
"""`evaluate.ttt` -> name of the line with the score."""
CLASSES = ("embed", "attn", "mlp")
HEADER = "This log was written by `pgolf record` after the run, from the metrics and the training trace of its stages."


def run_log(found: Evidence, source: Mapping[str, str], rules: Rules) -> str:
    """The log of one seed; `source`: path -> readable text of the program."""
    lines = [
        HEADER,
        *_setup(found, source, rules),
        *_training(found),
        *_quantization(found, source),
        *_evaluation(found),
    ]
    return "\n".join(lines) + "\n"


def _setup(found: Evidence, source: Mapping[str, str], rules: Rules) -> Iterator[str]:
    yield "Hyperparameters:"
    flat = {key.replace(".", "_"): value for key, value in dotted(found.params).items()}
    for key, value in sorted((flat | {"seed": found.seed}).items()):
        yield f"  {key}: {value}"
    yield "=" * 100
    for path, text in source.items():
        yield f"##### {path}"
        yield text.rstrip("\n")
    yield "=" * 100
    versions = (f"{name} {found.version(name)}" for name in ("python", "torch", "cuda", "flash_attn"))
    yield f"Running {', '.join(versions)}, attention by {found.run.value('train', 'attention')}"
    yield f"hardware: {found.run.value('train', 'hardware')}"
    yield f"train_shards: {len(found.manifest['train']['shards'])}"
    yield f"val_tokens: {found.run.value('evaluate', 'scored_tokens')}"
    yield f"val_bytes: {found.run.value('evaluate', 'scored_bytes')}"
    yield f"val_documents: {found.run.value('tokenize', 'val_documents')}"
    yield f"model_params:{found.run.value('train', 'parameters')}"
    train = found.params["train"]
    if train["seconds"] is None:
        clock = 1000 * rules.train_clock.value
        yield f"gptq:reserving 0s, effective={clock:.0f}ms, the rules' clock: the budget is {train['steps']} steps"
    else:
        left = 1000 * (train["seconds"] - train["reserve_seconds"])
        yield f"gptq:reserving {train['reserve_seconds']:g}s, effective={left:.0f}ms"


def _training(found: Evidence) -> Iterator[str]:
    trace, _ = artifacts.load(found.run.file(paths.TRACE), schema="pgolf.trace", made_by="train")
    steps, tokens = found.run.value("train", "steps"), found.run.value("train", "tokens")
    train, announced = found.params["train"], not _loops(found)
    config = build(TrainConfig, train, "train")
    for step, seconds, loss in zip(*(trace[key].tolist() for key in ("step", "seconds", "loss")), strict=True):
        fraction = progress(config, step, seconds)
        if not announced and fraction > train["loop_at"]:
            announced = True
            yield f"layer_loop:enabled step:{step:.0f} frac:{fraction:.3f} or before, at {train['loop_at']}"
        rate = tokens * step / steps / max(seconds, 1e-9)
        yield f"{step:.0f}/{steps} train_loss: {loss:.4f} train_time: {seconds / 60:.1f}m tok/s: {rate:.0f}"
    if not _loops(found):
        yield "layer_loop:enabled step:none, no layer runs twice"
    reason = "step_budget" if train["steps"] else "wallclock_cap"
    yield f"stopping_early: {reason} train_time: {found.train_ms}ms step: {steps}/{steps}"
    yield f"peak memory allocated: {found.run.value('train', 'peak_memory_bytes') // 2**20} MiB"
    yield f"{train['average']}:applying {train['average'].upper()} weights"
    loss, bpb = (found.run.value("score", f"prequant_{key}") for key in ("loss", "bpb"))
    yield f"diagnostic pre-quantization post-{train['average']} val_loss:{loss:.8f} val_bpb:{bpb:.8f}"


def _loops(found: Evidence) -> bool:
    model = found.params["model"]
    return bool(model["loop_runs"] > 1 or model["stack_runs"] > 1)


def _quantization(found: Evidence, source: Mapping[str, str]) -> Iterator[str]:
    run, codec = found.run, found.params["compress"]["codec"]
    yield f"Serialized model: {4 * run.value('train', 'parameters')} bytes, in float32"
    yield f"Code size (uncompressed): {sum(len(text.encode()) for text in source.values())} bytes"
    yield f"Code size (compressed): {found.bytes_code} bytes"
    hessians = set(matrix_inputs(build(ModelConfig, found.params["model"], "model")).values())
    yield f"GPTQ:collecting Hessians from {found.calibration}, on the training clock"
    yield f"GPTQ:collected {len(hessians)} Hessians in {run.value('calibrate', 'calibrate_seconds'):.1f}s"
    yield "Quantized weights:"
    for name in CLASSES:
        scheme, measured = found.params["quantize"][name], run.metrics.get("quantize", {})
        entropy, error = (measured.get(f"{key}_{name}", "-") for key in ("bits_per_weight_entropy", "weighted_error"))
        yield f"  gptq (int{scheme['bits']}, k {scheme['k_sigma']:g}) {name}: entropy {entropy}, relative error {error}"
    yield f"Serialized model quantized+{codec}: {found.bytes_model} bytes"
    yield f"Total submission size quantized+{codec}: {found.bytes_total} bytes"
    yield f"Deserialize: {run.value('compress', 'decompress_seconds'):.1f}s"


def _evaluation(found: Evidence) -> Iterator[str]:
    run, form = found.run, found.params["evaluate"]["ttt"]
    loss, bpb = (run.value("evaluate", f"quantized_{key}") for key in ("loss", "bpb"))
    seconds = run.value("evaluate", "eval_seconds")
    yield f"diagnostic quantized val_loss:{loss:.8f} val_bpb:{bpb:.8f}"
    if form == "none":
        yield "ttt: none, the weights stay as the artifact holds them"
    else:
        yield f"ttt_{form}:compile warmup done {run.value('evaluate', 'warmup_seconds'):.1f}s"
        updates = run.value("evaluate", "update_steps")
        yield f"ttt_{form}: total_docs:{run.value('tokenize', 'val_documents')} update_steps:{updates}"
    if (cache := found.params["evaluate"]["cache"])["sharpness"]:
        yield "cache of states: " + " ".join(f"{name}:{value:g}" for name, value in cache.items())
    score = f"val_loss:{found.val_loss:.8f} val_bpb:{found.val_bpb:.8f}"
    yield f"{FINAL.get(form, f'quantized_ttt_{form}')} {score} eval_time:{1000 * seconds:.0f}ms"
    yield f"total_eval_time:{seconds:.1f}s"
