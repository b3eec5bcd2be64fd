"""Documents, or a fetched export, to tokens: tokenizer, shards, byte sidecar and manifest."""

from pathlib import Path

from pgolf import artifacts, paths
from pgolf.console import progress, stage_main, table
from pgolf.data.adoption import adopt_published
from pgolf.data.config import DataConfig, TokenizeConfig
from pgolf.data.corpus import tokenize_corpus
from pgolf.params import section


def tokenize(params: Path = paths.PARAMS) -> None:
    """Turn the documents of `data` into token shards in the challenge's format, or take a fetched export's."""
    data, config = section(params, "data", DataConfig), section(params, "tokenize", TokenizeConfig)
    work = adopt_published if data.published else tokenize_corpus
    with progress("tokenize") as show:
        metrics = work(
            data, config, paths.TOKENS, paths.TOKENIZER, lambda phase, done, total: show.count(phase)(done, total)
        )
    artifacts.write_json(paths.metrics("tokenize"), metrics)
    rows = [
        (name.replace("_", " "), value if isinstance(value, str) else round(value, 3))
        for name, value in metrics.items()
    ]
    table("tokens", ("", "value"), rows)


if __name__ == "__main__":
    stage_main(tokenize)
