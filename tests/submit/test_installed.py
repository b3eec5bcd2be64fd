"""Packing works from an ordinary installation too, where the project lies beside everything else."""

from pathlib import Path

from pgolf.submit.pack_code import pack_code


def test_a_neighbour_in_the_same_folder_is_not_packed(tmp_path: Path) -> None:
    files = {
        "prog/__init__.py": "",
        "prog/run.py": "import numpy\nfrom prog.part import x\ndef main(params):\n    return x\n",
        "prog/part.py": "x = 1\n",
        "numpy/__init__.py": "import forbidden_neighbour\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    names = {"prog/__init__.py", "prog/run.py", "prog/part.py"}
    assert set(pack_code("prog.run", tmp_path, {}).readable) == names
