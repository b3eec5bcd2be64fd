"""Whole folders in the form of the published ones, with everything that they hold: not one false alarm."""

import base64
import json
import lzma
import math
import statistics
from pathlib import Path

import pytest
from submissions import PROGRAM, Seed, merged_log, sliding_log, starter_log

from pgolf.audit.foreign import audit_folder
from pgolf.rules import load_rules

RULES = load_rules()
TOKENS, BYTES = 47_851_520, 151_074_499
SCORES = {
    42: (1.05989454, 15_865_260, 4_886),
    0: (1.06124613, 15_868_948, 4_868),
    1234: (1.06208695, 15_875_551, 4_861),
}
BEFORE = {42: (1.06395844, 1.07254371), 0: (1.06545102, 1.07407339), 1234: (1.06597455, 1.07478012)}
PHASED_PROGRAM = f"""\
import os
import glob
import lossless_caps
{PROGRAM}
# Words at the beginning of a line, as they stand in the text of programs:
ngram_cache = None
slot_eval: int = 0
ppm_mix = {{"enabled": 0}}


class Settings(Hyperparameters):
    data_path = os.environ.get("DATA_PATH", "./data")
    gptq_reserve_seconds = float(os.environ.get("GPTQ_RESERVE_SECONDS", 0.5))
    logfile = None
    val_loss_every = int(os.environ.get("VAL_LOSS_EVERY", 4000))
    val_files = os.path.join("data", "fineweb_val_*.bin")
    val_bytes_files = os.path.join("data", "fineweb_val_bytes_*.bin")


def load_validation(pattern):
    return [name for name in sorted(glob.glob(pattern)) if "_bytes_" not in name]


def warmup(model, optimizer, vocab):
    tokens = torch.randint(0, vocab, (1, 2048))
    model(tokens).backward()
    optimizer.step()


def score_documents(model, documents, adapters, optimizer):
    total = 0.0
    for document in documents:
        for chunk in document.chunks(48):
            losses = model(chunk, adapters)
            total += losses.detach().sum().item()
            if not chunk.is_last:
                losses.mean().backward()
                optimizer.step()
    return total


def main():
    model = train(Settings())
    log(f"quantized_ttt_phased val_loss:{{score_documents(model, [], None, None):.8f}}")


if __name__ == "__main__":
    main()
"""
CAPS = '''\
"""Case operators: U+E001 to U+E004."""
OPERATORS = "\\ue001\\ue002\\ue003\\ue004"


def encode(text):
    return text.lower()
'''
README = """\
# SP8192 + CaseOps + phased test-time training

**val_bpb {mean:.8f}** (3 seeds)

| seed | steps | pre-quant | quantized | **val_bpb** | artifact |
|---|---|---|---|---|---|
{rows}
| mean | | | | **{mean:.8f}** | |

Hardware: 8xH100 80GB SXM, PyTorch 2.9.1+cu128. Expected: `train_shards: 80`, `val_tokens: 47851520`.

```bash
pip install -r requirements.txt && apt-get install lrzip
SEED=42 CASEOPS_ENABLED=1 EMBED_BITS=7 MATRIX_LR=0.026 GPTQ_RESERVE_SECONDS=8.0 DATA_PATH=./data \\
torchrun --standalone --nproc_per_node=8 train_gpt.py
```

## Compliance (issue #1017)

Score first: every chunk is scored before its tokens are trained on.
"""


def phased_log(seed: int, code: int) -> str:
    """Every line of the published program, in its order."""
    bpb, model, steps = SCORES[seed]
    ratio = math.log(2) * BYTES / TOKENS
    (before, quantized), stop = BEFORE[seed], 591_984 + seed % 7
    config = {
        "caseops_enabled": True, "data_path": "./data", "embed_bits": 7, "gptq_reserve_seconds": 8.0,
        "logfile": f"logs/{seed}.txt", "matrix_lr": 0.026, "run_id": f"run_{seed}", "seed": seed,
        "train_files": "./data/fineweb_train_*.bin", "val_doc_fraction": 1.0, "val_loss_every": 0,
    }  # fmt: skip
    rule = "=" * 100
    return "\n".join(
        [
            f"W0427 12:00:0{seed % 9}.000000 4711 torch/distributed/run.py:803] ***",
            "Hyperparameters:", *(f"  {key}: {value}" for key, value in config.items()),
            rule, PHASED_PROGRAM, rule, "Running Python 3.12.3 (main)", "Running PyTorch 2.9.1+cu128",
            "| NVIDIA-SMI 570.86.15   Driver Version: 570.86.15   CUDA Version: 12.8 |", rule,
            "train_shards: 80", f"val_tokens: {TOKENS}", "model_params:35945671",
            "gptq:reserving 8s, effective=592000ms", "warmup_cu_buckets:64,128,192,256 iters_each:3",
            "warmup_step: 1/20", "warmup_step: 20/20", "loop_warmup:enabled encoder:[0, 1, 2, 3, 4, 5]",
            "loop_warmup_step: 20/20", "0/20000 val_loss: 9.0094 val_bpb: 4.1166",
            "1/20000 train_loss: 9.0098 train_time: 0.0m tok/s: 12331512",
            "4500/20000 train_loss: 2.3992 train_time: 8.7m tok/s: 6744435",
            "layer_loop:enabled step:2178 frac:0.350 encoder:[0, 1, 2, 3, 4, 5, 3, 4] decoder:[5, 3, 4, 5, 6, 7]",
            f"{steps}/20000 val_loss: 2.3200 val_bpb: 1.0601",
            f"stopping_early: wallclock_cap train_time: {stop}ms step: {steps}/20000",
            "peak memory allocated: 41717 MiB reserved: 46952 MiB", "ema:applying EMA weights",
            f"diagnostic pre-quantization post-ema val_loss:{before * ratio:.8f} val_bpb:{before:.8f} eval_time:7105ms",
            "Serialized model: 135417533 bytes", f"Code size (uncompressed): {code} bytes",
            "Code size (compressed): 31999 bytes", "GPTQ:collecting Hessians from calibration data...",
            "GPTQ:collected 67 Hessians in 4.7s", "Quantized weights:",
            "  gate_int8_row: blocks.attn.attn_gate_w", "  gptq (int6): blocks.attn.c_k.weight, blocks.mlp.fc.weight",
            f"Serialized model quantized+pergroup: {model} bytes",
            f"Total submission size quantized+pergroup: {model + 31_999} bytes",
            "Deserialize: per-group lrzip decompression done in 20.4s",
            f"diagnostic quantized val_loss:{quantized * ratio:.8f} val_bpb:{quantized:.8f} eval_time:11962ms",
            "ttt_lora:warming up compile (random tokens, no val data)", "ttt_lora:compile warmup done (137.6s)",
            "beginning TTT eval timer",
            "ttt_phased: total_docs:50000 prefix_docs:2500 suffix_docs:47500 num_phases:3 boundaries:[833, 1666, 2500]",
            "ttp: b780/782 bl:2.3010 bb:1.0498 rl:2.3010 rb:1.0498 dl:5000-6000 gd:0",
            "ttpp: phase:1/3 pd:1296 gd:833 t:190.1s", "tttg: c1/131 lr:0.001000 t:0.3s",
            "tttg: c131/131 lr:0.000000 t:41.2s", "ttpr: phase:1/3 t:232.0s", "tttg: c1/219 lr:0.001000 t:0.3s",
            "tttg: c1/289 lr:0.001000 t:0.3s", "ttp: b1/782 bl:2.3301 bb:1.0702 rl:2.3199 rb:1.0599 dl:30-40 gd:1",
            f"quantized_ttt_phased val_loss:{bpb * ratio:.8f} val_bpb:{bpb:.8f} eval_time:508785ms",
            "total_eval_time:508.8s",
        ]
    )  # fmt: skip


def phased_claims() -> dict[str, object]:
    """submission.json with every field of the last record."""
    ratio = math.log(2) * BYTES / TOKENS
    results = {
        str(seed): {
            "val_loss": round(bpb * ratio, 8), "val_bpb": bpb, "artifact_bytes": model + 31_999, "steps": steps,
            "step_avg_ms": round((591_984 + seed % 7) / steps, 1), "eval_time_s": 508.8,
            "train_time_s": (591_984 + seed % 7) / 1000, "pre_quant": BEFORE[seed][0], "quantized": BEFORE[seed][1],
        }
        for seed, (bpb, model, steps) in SCORES.items()
    }  # fmt: skip
    column = {key: [row[key] for row in results.values()] for key in results["42"]}
    mean = {key: statistics.fmean(values) for key, values in column.items()}
    return {
        "author": "A. Author", "github_id": "author", "name": "Phased", "blurb": "As published.", "date": "2026-04-27",
        "track": "10min_16mb", "val_loss": round(mean["val_loss"], 8), "val_bpb": round(mean["val_bpb"], 8),
        "val_loss_std": round(statistics.pstdev(column["val_loss"]), 5),
        "val_bpb_std": round(statistics.pstdev(column["val_bpb"]), 5), "seeds": [42, 0, 1234], "seed_results": results,
        "comparison_baseline_bpb": 1.08100, "delta_vs_leaderboard_bpb": round(mean["val_bpb"] - 1.081, 6),
        "artifact_bytes_mean": round(mean["artifact_bytes"]), "artifact_bytes_max": max(column["artifact_bytes"]),
        "bytes_total": max(column["artifact_bytes"]), "train_steps_mean": round(mean["steps"], 2),
        "step_avg_ms_mean": round(mean["step_avg_ms"], 2), "hardware": "8xH100 80GB SXM",
        "pytorch_version": "2.9.1+cu128", "cuda_version": "12.8", "flash_attn_version": "FA3",
        "technique_summary": "CaseOps, LQER, phased test-time training",
        "compliance": {
            "train_under_600s": True, "artifact_under_16mb": True, "eval_under_600s": True, "no_slot": True,
            "no_pre_quant_ttt": True, "no_etlb": True, "no_ngram_cache": True, "score_first_ttt": True,
            "three_seeds": True,
        },
        "attribution": {"case operators": "PR 1729"}, "seed_results_all_runs_disclosure": ["42", "0", "1234"],
    }  # fmt: skip


def write(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    return folder


def readme(rows: dict[int, tuple[object, ...]], mean: float) -> str:
    lines = (f"| {seed} | {' | '.join(map(str, row))} |" for seed, row in rows.items())
    return README.format(rows="\n".join(lines), mean=mean)


def phased_folder(folder: Path) -> Path:
    claims, code = phased_claims(), len(PHASED_PROGRAM.encode())
    rows = {s: (SCORES[s][2], *BEFORE[s], SCORES[s][0], SCORES[s][1] + 31_999) for s in SCORES}
    return write(folder, {
        "README.md": readme(rows, claims["val_bpb"]), "submission.json": json.dumps(claims),
        "train_gpt.py": PHASED_PROGRAM, "lossless_caps.py": CAPS, "requirements.txt": "torch==2.9.1\nbrotli\n",
        "prepare_caseops_data.py": "import json\nfrom lossless_caps import encode\nVAL_DOCS = 50000\n",
        **{f"train_seed{seed}.log": phased_log(seed, code) for seed in SCORES},
    })  # fmt: skip


def merged_folder(folder: Path) -> Path:
    """PR 1493: a packed program, a submission.json of the fewest fields."""
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9}]
    blob = base64.b85encode(lzma.compress(PROGRAM.encode(), lzma.FORMAT_RAW, filters=filters)).decode()
    program = (
        "import lzma as L,base64 as B\n"
        f'exec(L.decompress(B.b85decode("{blob}"),format=L.FORMAT_RAW,filters=[{{"id":L.FILTER_LZMA2}}]))\n'
    )
    code = len(program)
    runs = [
        Seed(
            seed,
            loss,
            tokens=40_540_160,
            bytes=151_078_520,
            code=code,
            model=15_975_336,
            train_ms=588_033,
            hessian=10.4,
        )
        for seed, loss in ((42, 2.79185), (314, 2.79247), (999, 2.79286))
    ]
    logs = {f"train_seed{run.seed}.log": "\n".join(merged_log(run)) for run in runs}
    logs = {name: text.replace("reserving 5s, effective=595000ms", "reserving 12s, effective=588000ms")
            for name, text in logs.items()}  # fmt: skip
    claims = {
        "author": "somebody", "github_id": "somebody", "name": "Legal TTT", "date": "2026-04-09", "track": "10min_16mb",
        "val_bpb": round(statistics.fmean(run.bpb for run in runs), 5), "val_bpb_std": round(
            statistics.stdev(run.bpb for run in runs), 5), "seeds": [run.seed for run in runs],
        "seed_results": {str(r.seed): {"val_bpb": round(r.bpb, 5), "artifact_bytes": r.total} for r in runs},
        "hardware": "8xH100 80GB SXM", "pytorch_version": "2.9.1+cu128",
        "compliance": {"train_under_600s": True, "score_first_ttt": True, "three_seeds": True},
    }  # fmt: skip
    text = readme({r.seed: (r.steps, round(r.bpb, 4), r.total) for r in runs}, claims["val_bpb"])
    text = text.replace("47851520", "40540160").replace("GPTQ_RESERVE_SECONDS=8.0", "")
    return write(folder, {"README.md": text, "submission.json": json.dumps(claims), "train_gpt.py": program, **logs})


def starter_folder(folder: Path, sliding: bool) -> Path:
    """PR 549 and the records before it: plain code, lzma or zstd, a blurb, logs of the first dialect."""
    code = len(PROGRAM.encode())
    runs = [
        Seed(
            seed, loss, tokens=62_021_632, bytes=151_079_963, code=code, model=15_907_661, steps=7_185, train_ms=599_232
        )
        for seed, loss in ((1337, 1.88988), (42, 1.89104), (2025, 1.89021))
    ]
    log = sliding_log if sliding else starter_log
    source = f"{PROGRAM}\n{'=' * 100}\nRunning Python 3.12.3\nRunning PyTorch 2.9.1+cu128\n{'=' * 100}\n"
    claims = {
        "author": "somebody", "github_id": "somebody", "name": "Legal", "blurb": "Parallel Muon.",
        "date": "2026-03-23T05:10:00Z", "val_loss": round(statistics.fmean(run.loss for run in runs), 8),
        "val_bpb": round(statistics.fmean(run.bpb for run in runs), 8), "bytes_total": runs[0].total,
        "bytes_code": code,
    }  # fmt: skip
    text = readme({r.seed: (r.steps, round(r.bpb, 4), r.total) for r in runs}, claims["val_bpb"])
    return write(folder, {
        "README.md": text.replace("47851520", "62021632"), "submission.json": json.dumps(claims),
        "train_gpt.py": PROGRAM, **{f"train_seed{run.seed}.log": source + "\n".join(log(run)) for run in runs},
    })  # fmt: skip


NO_LIST = {"files.requirements", "seeds.selected", "seeds.significance", "tokens.documents"}
"""What the older folders do not say."""
FOLDERS = {
    "phased": (phased_folder, {"seeds.significance"}),
    "merged": (merged_folder, NO_LIST | {"submission.fields"}),
    "starter": (lambda folder: starter_folder(folder, sliding=False), NO_LIST | {"submission.means", "submission.logs",
                                                                                 "submission.compliance"}),
    "sliding": (lambda folder: starter_folder(folder, sliding=True), NO_LIST | {"submission.means", "submission.logs",
                                                                                "submission.compliance"}),
}  # fmt: skip


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_as_published_raises_no_false_alarm(name: str, tmp_path: Path) -> None:
    make, unsaid = FOLDERS[name]
    found = audit_folder(make(tmp_path / name), RULES)
    assert {f.check: f.evidence for f in found.findings if f.verdict == "fail"} == {}
    assert {f.check for f in found.findings if f.verdict == "cannot tell"} == unsaid, [
        f for f in found.findings if f.verdict == "cannot tell" and f.check not in unsaid
    ]
    verdicts = {f.check: f.verdict for f in found.findings}
    for check in ("bytes.rho", "tokens.val", "size.cap", "size.code", "log.complete", "clock.train", "leak.gap"):
        assert verdicts[check] == "pass", check


def test_the_clock_of_the_last_record_as_published(tmp_path: Path) -> None:
    """With half a second in reserve, calibration ran beyond the clock."""
    folder = phased_folder(tmp_path / "x")
    for log in folder.glob("*.log"):
        text = log.read_text().replace("train_time: 59198", "train_time: 59958").replace("592000ms", "599500ms")
        log.write_text(text)
    found = audit_folder(folder, RULES)
    assert [f.check for f in found.findings if f.verdict == "fail"] == ["clock.train", "submission.logs"]
