"""The trained model on the validation set before quantization; nothing depends on it but the tables."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.checkpoint_file import load_checkpoint
from pgolf.console import progress, stage_main
from pgolf.data.tokens import open_tokens
from pgolf.device import pick_device
from pgolf.evaluate.config import EvaluateConfig
from pgolf.evaluate.score import subset_scores, summarize, token_losses, windows_for
from pgolf.params import section


def score(params: Path = paths.PARAMS) -> None:
    """Plain evaluation of the full-precision weights: what quantization will be measured against."""
    config = section(params, "evaluate", EvaluateConfig)
    device, dtype = pick_device()
    checkpoint = load_checkpoint(paths.MODEL)
    tokens = open_tokens(paths.TOKENS, paths.TOKENIZER)
    tokens.check_model(paths.MODEL, checkpoint.vocab_size, checkpoint.tokenizer)
    with progress("score") as show:
        windows = windows_for(tokens.val, config, config.seq_len)
        model = checkpoint.build(device, dtype)
        losses = token_losses(model, tokens.val, windows, config.batch_tokens, show.count("targets"))
    result = summarize(losses, tokens.val_bytes[1:])
    metrics = {"prequant_bpb": result.bpb, "prequant_loss": result.loss}
    metrics |= subset_scores("prequant", losses, tokens.val_bytes[1:], config.subset_targets)
    artifacts.write_json(paths.metrics("score"), metrics)


if __name__ == "__main__":
    stage_main(score)
