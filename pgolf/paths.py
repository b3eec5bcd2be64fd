"""Where artifacts and metrics lie, relative to the working folder; the same paths stand in dvc.yaml."""

from pathlib import Path

PARAMS = Path("params.yaml")
TOKENIZER = Path("artifacts/tokenizer/tokenizer.model")
TOKENS = Path("artifacts/tokens")
MODEL = Path("artifacts/train/model.safetensors")
AVERAGES = Path("artifacts/train/averages.safetensors")
TRACE = Path("artifacts/train/trace.safetensors")
HESSIANS = Path("artifacts/calibrate/hessians.safetensors")
QUANTIZED = Path("artifacts/quantize/quantized.safetensors")
ARTIFACT = Path("artifacts/compress/model.pgolf")
LOSSES = Path("artifacts/evaluate/losses.safetensors")
PACE = Path("artifacts/evaluate/pace.json")
VERIFY = Path("artifacts/verify/report.json")
PACKED_CODE = Path("artifacts/verify/train_gpt.py")
REPORT = Path("artifacts/report")
SCRATCH = Path("scratch")
PUBLISHED = Path("data/published")
ADOPTED = Path("data/adopted")


def metrics(stage: str) -> Path:
    """Flat metrics of one stage, committed to git."""
    return Path("metrics") / f"{stage}.json"
