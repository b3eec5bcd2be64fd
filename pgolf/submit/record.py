"""Writes a submission folder from finished runs, one per seed. The folder is complete or it is not there at all."""

import importlib.metadata
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pgolf
from pgolf import artifacts, paths
from pgolf.errors import InputError
from pgolf.rules import Rules
from pgolf.runs import Run
from pgolf.submit.claims import About, claims
from pgolf.submit.closure import third_party
from pgolf.submit.evidence import Evidence, gather
from pgolf.submit.leaderboard import Published
from pgolf.submit.pack_code import packed_from
from pgolf.submit.readme import readme
from pgolf.submit.run_log import run_log
from pgolf.submit.techniques import PAGE, used_techniques

ROOT = Path(pgolf.__file__).parents[1]
SUMS = "SHA256SUMS"
PACKER = tuple(
    f"pgolf/submit/{name}.py"
    for name in ("__init__", "arguments", "bundle", "closure", "defaults", "methods", "pack_code", "reach", "strip")
)
"""What the proof needs beside the program itself."""
DISTRIBUTIONS = {"brotli": "Brotli", "flash_attn": "flash-attn-4", "flash_attn_interface": "flash-attn-3"}
OPTIONAL_PACKAGES = {"constriction", "flash_attn", "flash_attn_interface", "triton", "zstandard"}

PROOF = '''\
"""Shows that train_gpt.py is source/: packs it again; needs brotli and python-minifier {minifier}."""

import sys
from pathlib import Path

sys.dont_write_bytecode = True
here = Path(__file__).parent
sys.path.insert(0, str(here / "source"))
from pgolf.submit.pack_code import optional_modules, program_text, unpack_code  # noqa: E402

files = {{path.relative_to(here / "source").as_posix(): path for path in (here / "source").rglob("*.py")}}
sources = {{name: path.read_text("utf-8") for name, path in files.items() if "/submit/" not in name}}
packed, params = unpack_code((here / "train_gpt.py").read_bytes())
same = program_text(sources, exclude=optional_modules(params)) == packed
print(f"train_gpt.py {{'is' if same else 'is not'}} the {{len(sources)}} files of source/")
sys.exit(not same)
'''


def record(
    out: Path, runs: Sequence[Run], about: About, base: Published, rules: Rules, *, also: Sequence[Run] = ()
) -> dict[str, Any]:
    """Write the folder `out` and return its submission.json; `also`: further runs that were made, for disclosure.

    InputError where `out` exists, a run lacks something, or the runs are not one configuration under several seeds.
    """
    if out.exists():
        raise InputError(f"{out} exists: a submission is written whole, name a new folder")
    found = gather(list(runs))
    source = readable_source(found[0].run.file(paths.PACKED_CODE).read_bytes())
    techniques = used_techniques(found[0].params, set(source), ROOT / PAGE)
    named = [run.name for run in runs]
    disclosed = [*runs, *(run for run in also if run.name not in named)]
    fields = claims(about, found, base, rules, techniques, disclosed)
    texts = {
        "requirements.txt": _requirements(source),
        "prove.py": PROOF.format(minifier=importlib.metadata.version("python-minifier")),
        **{f"train_seed{each.seed}.log": run_log(each, source, rules) for each in found},
        **{f"source/{path}": text for path, text in source.items()},
        **{f"source/{path}": (ROOT / path).read_text("utf-8") for path in PACKER},
    }
    files = _described(found)
    texts["README.md"] = readme(fields, found, techniques, rules, files)
    with artifacts.atomic_folder(out) as folder:
        for name, text in texts.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text, "utf-8")
        artifacts.write_json(folder / "submission.json", fields)
        shutil.copyfile(found[0].run.file(paths.PACKED_CODE), folder / "train_gpt.py")
        shutil.copyfile(found[0].run.file(paths.TOKENIZER), folder / "tokenizer.model")
        for each in found:
            shutil.copyfile(each.run.file(paths.ARTIFACT), folder / f"model_seed{each.seed}.pgolf")
        (folder / SUMS).write_text(checksums(folder), "utf-8")
    return fields


def readable_source(code: bytes) -> dict[str, str]:
    """Path -> source text of everything in a packed program, from this checkout.

    InputError where the checkout is no longer what was packed.
    """
    source = packed_from(ROOT, code)
    if source is None:
        raise InputError(
            "the source here is not what the run was packed from: check out its revision (`git checkout`), or run "
            "`dvc repro` and record that"
        )
    return source


def checksums(folder: Path) -> str:
    """One line per file but the list itself, as `sha256sum -c` reads it."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.is_symlink() and p != folder / SUMS)
    return "".join(f"{artifacts.sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files)


def changed_files(folder: Path) -> list[str]:
    """Files of a recorded folder that differ from their checksum, are missing, or were added."""
    stated, present = (_sums(text) for text in ((folder / SUMS).read_text("utf-8", "replace"), checksums(folder)))
    return sorted(name for name in stated.keys() | present.keys() if stated.get(name) != present.get(name))


def _sums(text: str) -> dict[str, str]:
    """File -> checksum."""
    return {name: digest for digest, _, name in (line.partition("  ") for line in text.splitlines())}


def _requirements(source: Mapping[str, str]) -> str:
    """The packages of the program in the versions here; kernels and codecs that it can do without are comments."""
    external = third_party({path.removesuffix(".py").replace("/", "."): ROOT / path for path in source})
    lines = []
    for name in sorted((external.eager | external.lazy | {"brotli"}) - OPTIONAL_PACKAGES):
        public = importlib.metadata.version(name).partition("+")[0]  # the local part (+cpu) is in no index
        lines.append(f"{name}=={public}")
    extra = sorted((external.eager | external.lazy) & OPTIONAL_PACKAGES)
    return "\n".join([*lines, *(f"# optional: {DISTRIBUTIONS.get(name, name)}" for name in extra)]) + "\n"


def _described(found: Sequence[Evidence]) -> dict[str, str]:
    return {
        "train_gpt.py": "the program, packed; its bytes count",
        "source/": "the same program, readable, and the packer",
        "prove.py": "shows that both are the same",
        "submission.json": "every claim as data",
        **{f"train_seed{each.seed}.log": f"log of seed {each.seed}" for each in found},
        **{f"model_seed{each.seed}.pgolf": f"artifact of seed {each.seed}; its bytes count" for each in found},
        "tokenizer.model": "SentencePiece model; does not count",
        "requirements.txt": "packages",
        SUMS: "`sha256sum -c` checks every file",
    }
