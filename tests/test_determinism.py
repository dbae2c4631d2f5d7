"""The same seed gives the same bytes: every kind of result, made in two processes that share nothing.

Sweeps and the store have such tests of their own in test_sweep.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from fuzzing import safetensors_parts
from pickles import assert_no_pickle
from warm import Warm

pytestmark = pytest.mark.slow  # two processes make every kind of result

# Python orders sets of texts by its hash seed, and a second process has other addresses and other free memory.
HASH_SEEDS = ("1", "3")
MAKE = """
import shutil
import sys
from pathlib import Path
from tiny_training import TINY
from ivlens.cli.main import main
from ivlens.pocket.train import Trainer

out, seed = Path(sys.argv[1]), sys.argv[2]
few = ["--task", "antonym", "--n-prompts", "2", "--seed", seed]
train = ["--steps", "3", "--batch-size", "4", "--n-samples", "12", "--judge-every", "2", "--checkpoint-every", "2"]
kept = ["--task", "middle_of_three", "--watch", "antonym", "--guidance", "iv", "--seed", seed]
assert main(["effects", *few, "--out", str(out / "effects.safetensors")]) == 0
assert main(["effects", *few, "--out", str(out / "effects.parquet")]) == 0
judged = ["--n-judge-prompts", "2", "--n-draws", "1", "--n-more-draws", "1", "--rows", "necessity", "--k", "3"]
assert main(["evaluate", *few, "--task", "synonym", *judged, "--out", str(out / "evaluate")]) == 0
shutil.rmtree(out / "evaluate" / "store")  # whose manifests have times
assert main(["attention", *few, "--n-shots", "2", "--out", str(out / "attention")]) == 0
assert main(["vector", *few, "--out", str(out / "vector.safetensors")]) == 0
assert main(["tune", *kept, *train, "--out", str(out / "lora")]) == 0
assert main(["tune", *kept[:-4], *kept[-2:], *train, "--method", "full", "--out", str(out / "full")]) == 0
Trainer(type(TINY)(**{**TINY.__dict__, "seed": int(seed)}), out / "pocket", quiet=True).run(save_every=2)
"""


def made(folder: Path, hash_seed: str, seed: int = 0) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": hash_seed}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command, options = ["-c", MAKE, str(folder), str(seed)], {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    if seed:  # nothing is the same as in the others, so that it may be a warm one, whatever its hash seed
        return Warm(command, text=True, env=environment, **options)
    return subprocess.Popen([sys.executable, *command], text=True, env=environment, **options)


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The same things in two folders, and in a third with another seed."""
    folders = [tmp_path_factory.mktemp("made") for _ in range(3)]
    seeds = [(HASH_SEEDS[0], 0), (HASH_SEEDS[1], 0), (HASH_SEEDS[0], 1)]
    jobs = [made(folder, *seed) for folder, seed in zip(folders, seeds, strict=True)]
    for job in jobs:
        out, _ = job.communicate(timeout=600)
        assert job.returncode == 0, out
    return folders


def contents(folder: Path) -> dict[str, bytes]:
    """Bytes of every file; of a training's log and state all but the seconds that its steps took."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != ".lock":
            found[path.relative_to(folder).as_posix()] = _without_times(path)
    return found


def _without_times(path: Path) -> bytes:
    if path.name == "log.csv":
        return pd.read_csv(path).drop(columns="seconds").to_csv(index=False).encode()
    data = path.read_bytes()
    if path.name == "state.safetensors" and path.parent.name != "pocket":
        header, tensors = safetensors_parts(data)
        about = json.loads(header["__metadata__"].pop("ivlens"))
        for row in about["log"]:
            del row["seconds"]
        return json.dumps([header, about]).encode() + tensors
    return data


def test_the_same_seed_gives_the_same_bytes_in_another_process(twice: list[Path]):
    first, second = map(contents, twice[:2])
    assert first.keys() == second.keys()
    assert [name for name in first if first[name] != second[name]] == []
    assert first["lora/log.csv"].count(b"\n") == 4


@pytest.mark.parametrize(
    "name",
    [
        "effects.safetensors", "effects.parquet", "attention/attention.parquet", "attention/index.html",
        "attention/scores.parquet", "vector.safetensors", "evaluate/rows.parquet", "evaluate/by_vector.parquet",
        "evaluate/vectors/synonym.safetensors", "evaluate/index.html", "lora/model/adapter_model.safetensors",
        "lora/step-000002/adapter_model.safetensors", "lora/state.safetensors", "lora/log.csv",
        "full/model/model.safetensors", "full/log.csv", "pocket/state.safetensors",
        "pocket/checkpoint/model.safetensors",
    ],
)  # fmt: skip
def test_another_seed_gives_others(twice: list[Path], name: str):
    """What is compared above can differ."""
    assert contents(twice[0])[name] != contents(twice[2])[name]


def test_none_of_it_is_a_pickle(twice: list[Path]):
    assert_no_pickle(twice[0], "full/model/model.safetensors", "pocket/checkpoint/model.safetensors")
