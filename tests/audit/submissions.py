"""Synthetic submission folders in the published format, one clean per log dialect, and ways to spoil them."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

CASEOPS = (47_851_520, 151_074_499)
SP1024 = (62_021_632, 151_079_963)
PROGRAM = """\
import glob
import os
import torch
import torch.nn.functional as F

train_files = "data/fineweb_train_*.bin"


class Hyperparameters:
    caseops_enabled = os.environ.get("CASEOPS_ENABLED", "0") == "1"
    embed_bits = int(os.environ.get("EMBED_BITS", 8))
    matrix_lr = float(os.environ.get("MATRIX_LR", 0.022))
    run_id = os.environ.get("RUN_ID", "run")
    seed = int(os.environ.get("SEED", 1337))
    val_doc_fraction = float(os.environ.get("VAL_DOC_FRACTION", 1.0))


def build_table(sp, vocab):
    base, space = torch.zeros(vocab), torch.zeros(vocab, dtype=torch.bool)
    for i in range(vocab):
        if sp.is_byte(i):
            base[i] = 1
            continue
        piece = sp.id_to_piece(i)
        space[i] = piece.startswith("▁")
        base[i] = len(piece.removeprefix("▁").encode())
    return base, space


def smear(x, ids, gate):
    keep = ids[:, 1:, None] != 1
    return torch.cat([x[:, :1], x[:, 1:] + gate * keep * x[:, :-1]], dim=1)


def collect_hessians(model, train_loader):
    return [model.inputs(batch) for batch in train_loader]


def eval_val_ttt(model, val_tokens, optimizer, chunks, epochs):
    total = 0.0
    for ci, (inputs, targets) in enumerate(chunks):
        with torch.no_grad():
            total += F.cross_entropy(model(inputs), targets, reduction="sum").item()
        if ci < len(chunks) - 1:
            for _ in range(epochs):
                F.cross_entropy(model(inputs), targets).backward()
                optimizer.step()
    return total


def windows(total, length, stride):
    for start in range(0, total, stride):
        yield start, 0 if start == 0 else length - stride
"""


README = """\
# Synthetic

| seed | BPB |
|---|---|
{rows}

## Data

`train_shards: {shards}`, `val_tokens: {tokens:,}`.

## Run, on 8xH100 SXM

```sh
pip install -r requirements.txt
SEED=42 EMBED_BITS=7 MATRIX_LR=.026 CASEOPS_ENABLED=1 torchrun --standalone --nproc_per_node=8 train_gpt.py
```

## Compliance

Every token is scored before anything learns from it.
"""


@dataclass
class Seed:
    """One run; a mutant changes its fields or its lines."""

    seed: int
    loss: float
    tokens: int = CASEOPS[0]
    bytes: int = CASEOPS[1]
    steps: int = 4945
    train_ms: int = 590_120
    hessian: float = 4.7
    model: int = 15_865_260
    code: int = 31_999
    raw: int = 0
    eval_s: float = 508.8
    shards: int = 80
    config: dict[str, str] = field(default_factory=dict)

    @property
    def bpb(self) -> float:
        return round(self.loss / math.log(2) * self.tokens / self.bytes, 8)

    @property
    def total(self) -> int:
        return self.model + self.code


def phased_log(run: Seed) -> list[str]:
    """PR 1855."""
    config = {
        "caseops_enabled": "True", "embed_bits": "7", "matrix_lr": "0.026", "run_id": f"run-{run.seed}",
        "seed": str(run.seed), "train_files": "./data/fineweb_train_*.bin", "val_doc_fraction": "1.0",
    }  # fmt: skip
    pre, quantized = run.bpb + 0.0041, run.bpb + 0.0126
    ratio = run.loss / run.bpb
    return [
        "Hyperparameters:",
        *(f"  {key}: {value}" for key, value in sorted((config | run.config).items())),
        "====",
        "import os  # the program's text is printed too",
        'log(f"quantized_ttt_phased val_loss:{loss:.8f} val_bpb:{bpb:.8f}")',
        f"train_shards: {run.shards}",
        f"val_tokens: {run.tokens}",
        "model_params:35945671",
        "gptq:reserving 5s, effective=595000ms",
        "warmup_step: 1/20",
        "0/20000 val_loss: 9.0094 val_bpb: 4.1166",
        "4500/20000 train_loss: 2.3992 train_time: 8.7m tok/s: 6744435",
        "layer_loop:enabled step:2178 frac:0.350",
        f"stopping_early: wallclock_cap train_time: {run.train_ms}ms step: {run.steps}/20000",
        "peak memory allocated: 41717 MiB reserved: 41720 MiB",
        "ema:applying EMA weights",
        f"diagnostic pre-quantization post-ema val_loss:{pre * ratio:.8f} val_bpb:{pre:.8f} eval_time:10977ms",
        "Serialized model: 135417533 bytes",
        f"Code size (uncompressed): {run.raw} bytes",
        f"Code size (compressed): {run.code} bytes",
        "GPTQ:collecting Hessians from calibration data...",
        f"GPTQ:collected 67 Hessians in {run.hessian}s",
        f"Serialized model quantized+pergroup: {run.model} bytes",
        f"Total submission size quantized+pergroup: {run.total} bytes",
        f"diagnostic quantized val_loss:{quantized * ratio:.8f} val_bpb:{quantized:.8f} eval_time:11962ms",
        "ttt_lora:compile warmup done (104.7s)",
        "ttt_phased: total_docs:50000 prefix_docs:2500 suffix_docs:47500 num_phases:1 boundaries:[2500]",
        "tttg: c1/289 lr:0.001000 t:0.3s",
        f"quantized_ttt_phased val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f} eval_time:{run.eval_s * 1000:.0f}ms",
        f"total_eval_time:{run.eval_s}s",
    ]


def starter_log(run: Seed) -> list[str]:
    """The starter program with sliding windows and PR 549's adaptation; code is counted as it is."""
    return [
        "W0320 19:05:11.310000 323008 torch/distributed/run.py:803] ****",
        f"logs/8e9acec0-{run.seed}.txt",
        "val_bpb:enabled tokenizer_kind=sentencepiece tokenizer_path=./data/tokenizers/fineweb_1024_bpe.model",
        f"train_loader:dataset:fineweb10B_sp1024 train_shards:{run.shards}",
        f"val_loader:shards pattern=./data/fineweb10B_sp1024/fineweb_val_*.bin tokens:{run.tokens}",
        "tie_embeddings:True embed_lr:0.035 head_lr:0.0 matrix_lr:0.025 scalar_lr:0.025",
        f"seed:{run.seed}",
        "warmup_step:1/20",
        "step:0/9000 val_loss:6.9307 val_bpb:4.1047 train_time:0ms step_avg:0.02ms",
        "step:7200/9000 train_loss:1.8961 train_time:587388ms step_avg:81.58ms",
        f"step:{run.steps}/9000 val_loss:1.9318 val_bpb:1.1441 train_time:{run.train_ms}ms step_avg:81.59ms",
        f"stopping_early: wallclock_cap train_time:{run.train_ms}ms step:{run.steps}/9000",
        "Serialized model: 105783807 bytes",
        f"Code size: {run.code} bytes",
        f"Serialized model int6+zstd: {run.model} bytes",
        f"Total submission size int6+zstd: {run.total} bytes",
        "final_int6_roundtrip val_loss:1.9477 val_bpb:1.1535 eval_time:1812ms",
        "final_int6_roundtrip_exact val_loss:1.94766030 val_bpb:1.15351414",
        f"final_int6_sliding_window val_loss:{run.loss * 1.002:.4f} val_bpb:{run.bpb * 1.002:.4f} eval_time:69216ms",
        f"final_int6_sliding_window_exact val_loss:{run.loss * 1.002:.8f} val_bpb:{run.bpb * 1.002:.8f}",
        "ttt_sliding:start chunks=1893 chunk_tokens=32768 total_windows=969088 stride=64",
        f"legal_ttt val_loss:{run.loss:.4f} val_bpb:{run.bpb:.4f} eval_time:{run.eval_s * 1000:.0f}ms",
        f"legal_ttt_exact val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f}",
    ]


def sliding_log(run: Seed) -> list[str]:
    """The starter program with sliding windows alone."""
    lines = [line for line in starter_log(run) if not line.startswith(("legal_ttt", "ttt_sliding", "final_int6_sl"))]
    return [
        *lines,
        f"final_int6_sliding_window val_loss:{run.loss:.4f} val_bpb:{run.bpb:.4f} stride:64 eval_time:69216ms",
        f"final_int6_sliding_window_exact val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f}",
    ]


def baseline_log(run: Seed) -> list[str]:
    """The starter program itself."""
    lines = [line for line in starter_log(run) if not line.startswith(("legal_ttt", "ttt_sliding", "final_int6"))]
    lines = [line.replace("int6+zstd", "int8+zlib") for line in lines]
    at = next(i for i, line in enumerate(lines) if line.startswith("Serialized model int8"))
    lines[at] += " (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)"
    lines.insert(at, f"Total submission size: {105_783_807 + run.code} bytes")
    return [
        *lines,
        f"final_int8_zlib_roundtrip val_loss:{run.loss:.4f} val_bpb:{run.bpb:.4f} eval_time:1401ms",
        f"final_int8_zlib_roundtrip_exact val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f}",
    ]


def merged_log(run: Seed) -> list[str]:
    """PR 1394 to PR 1493: the dump, and a line for each way to evaluate."""
    lines = [line for line in phased_log(run) if not line.startswith(("ttt", "total_eval", "quantized_ttt", "diag"))]
    lines = [line for line in lines if not line.startswith("Code size")]
    at = lines.index("GPTQ:collecting Hessians from calibration data...")
    lines.insert(at, f"Code size: {run.code} bytes")
    run.eval_s = min(run.eval_s, 400.0)
    at = lines.index("Serialized model: 135417533 bytes")
    pre = f"val_loss:{run.loss * 1.0062:.8f} val_bpb:{run.bpb * 1.0062:.8f}"
    lines.insert(at, f"pre-quantization post-ema {pre} eval_time:6689ms")
    return [
        *lines,
        f"quantized val_loss:{run.loss * 1.017:.8f} val_bpb:{run.bpb * 1.017:.8f} eval_time:11962ms",
        f"quantized_sliding_window val_loss:{run.loss * 1.002:.8f} val_bpb:{run.bpb * 1.002:.8f} eval_time:90000ms",
        f"quantized_ttt val_loss:{run.loss:.8f} val_bpb:{run.bpb:.8f} eval_time:{run.eval_s * 1000:.0f}ms",
    ]


DIALECTS: dict[str, Callable[[Seed], list[str]]] = {
    "phased": phased_log, "starter": starter_log, "merged": merged_log, "sliding": sliding_log,
    "baseline": baseline_log,
}  # fmt: skip


@dataclass
class Submission:
    """A whole folder in memory."""

    dialect: str = "phased"
    program: str = PROGRAM
    runs: list[Seed] = field(default_factory=list)
    claims: dict[str, object] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def clean(cls, dialect: str = "phased", program: str = PROGRAM, **changes: object) -> "Submission":
        """A folder without fault; `changes` go to every run."""
        raw = len(program.encode())
        losses = {42: 2.31944212, 0: 2.32240013, 1234: 2.32424001}
        runs = [Seed(seed, loss, raw=raw) for seed, loss in losses.items()]
        for run in runs:
            if dialect in ("starter", "sliding", "baseline"):
                run.tokens, run.bytes, run.code, run.loss = *SP1024, raw, run.loss - 0.4
                run.model = 15_632_049
            if dialect == "merged":
                run.code = raw
            for key, value in changes.items():
                setattr(run, key, value)
        made = cls(dialect, program, runs)
        return made.refresh()

    def refresh(self) -> "Submission":
        """Logs and claims that follow from the runs."""
        self.logs = {f"train_seed{run.seed}.log": DIALECTS[self.dialect](run) for run in self.runs}
        losses, bits = [r.loss for r in self.runs], [r.bpb for r in self.runs]
        self.claims = {
            "author": "A. Author", "github_id": "author", "name": "Synthetic", "blurb": "A folder made for tests.",
            "date": "2026-04-27", "track": "10min_16mb",
            "val_loss": statistics.fmean(losses), "val_bpb": statistics.fmean(bits),
            "val_loss_std": round(statistics.stdev(losses), 5), "val_bpb_std": round(statistics.pstdev(bits), 5),
            "seeds": [r.seed for r in self.runs],
            "seed_results": {
                str(r.seed): {
                    "val_loss": r.loss, "val_bpb": r.bpb, "artifact_bytes": r.total, "steps": r.steps,
                    "eval_time_s": r.eval_s,
                }
                for r in self.runs
            },
            "seed_results_all_runs_disclosure": [str(r.seed) for r in self.runs],
            "bytes_total": max(r.total for r in self.runs),
            "comparison_baseline_bpb": statistics.fmean(bits) + 0.02,
            "compliance": {"train_under_600s": True, "no_slot": True},
        }  # fmt: skip
        return self

    def write(self, folder: Path) -> Path:
        """The folder on disk."""
        folder.mkdir(parents=True, exist_ok=True)
        texts = {
            "README.md": README.format(
                rows="\n".join(f"| {run.seed} | {run.bpb:.8f} |" for run in self.runs),
                shards=self.runs[0].shards, tokens=self.runs[0].tokens,
            ),
            "requirements.txt": "torch\n",
            "train_gpt.py": self.program, "submission.json": json.dumps(self.claims),
            **{name: "\n".join(lines) + "\n" for name, lines in self.logs.items()}, **self.files,
        }  # fmt: skip
        for name, text in texts.items():
            if text is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text, "utf-8")
        return folder
