"""Hostile input of further kinds, each an endless series of drawn cases; for the tests and for benches/stress.py.

What is changed behind a checkpoint's back, files that unfold, streams that are closed, tasks of one thread in turns.

A kind is a function of `Things` and a random generator that yields calls; to add one, write it and name it in `KINDS`.
"""

import asyncio
import contextlib
import errno
import io
import itertools
import json
import os
import random
import resource
import shutil
import string
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from fuzzing import AGAIN, Tally, attempt
from wrong_values import GROWTH_GB, Things, limited, workplace

import ivlens
from ivlens.cli.main import main
from ivlens.models.checkpoints import Checkpoint

Cases = Iterator[Callable[[], Any]]


def identities(the: Things, draw: random.Random) -> Cases:
    """Something changes in a checkpoint, at the same size and time: its key must change, and come back with it."""
    folder = the.root / "mine"
    shutil.copytree(the.root / "model", folder)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    weighs = [path for path in files if path.name not in ("generation_config.json",)]
    first = Checkpoint("mine", folder).key()

    def changed(path: Path, place: int, bit: int, keeps_time: bool) -> None:
        data, about = path.read_bytes(), path.stat()
        broken = bytearray(data)
        broken[place % len(data)] ^= 1 << bit
        path.write_bytes(broken)
        if keeps_time:
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        now = Checkpoint("mine", folder).key()
        path.write_bytes(data)
        if keeps_time:
            os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        assert now != first, f"{path.name} changed, and its key did not"
        assert Checkpoint("mine", folder).key() == first

    while True:
        drawn = draw.choice(weighs), draw.randrange(2**40), draw.randrange(8), draw.random() < 0.7
        yield lambda drawn=drawn: changed(*drawn)


def unfolding(the: Things, draw: random.Random) -> Cases:
    """Small files that become large, deep or slow: tables, JSON, tokenizers, templates, configurations."""
    here = the.root / "unfolds"
    makers = [_table, _keys, _depth, _columns, _configuration, _normaliser, _template]
    while True:
        maker, seed = draw.choice(makers), draw.randrange(2**63)

        def tried(maker: Callable[..., Any] = maker, seed: int = seed) -> Any:
            shutil.rmtree(here, ignore_errors=True)
            here.mkdir()
            return maker(the, here, random.Random(seed))

        yield tried


def _table(the: Things, here: Path, draw: random.Random) -> Any:
    """A Parquet file with one long text, repeated; up to 100 GB."""
    n, length = int(10 ** draw.uniform(1, 5)), int(10 ** draw.uniform(1, 6))
    values = pa.DictionaryArray.from_arrays(pa.array([0] * n, pa.int32()), ["x" * length])
    inputs = pa.array([f"{number}" for number in range(n)])
    kept = values if draw.random() < 0.5 else values.cast(pa.string()) if n * length < 10**7 else values
    pq.write_table(pa.table({"input": inputs, "output": kept}), here / "task.parquet", compression="zstd")
    return ivlens.load_task(here / "task.parquet")


def _keys(the: Things, here: Path, draw: random.Random) -> Any:
    """The same key many times, or many keys that differ little."""
    n, same = int(10 ** draw.uniform(1, 5)), draw.random() < 0.5
    pairs = ", ".join(f'"k{"" if same else number}": "v{number}"' for number in range(n))
    (here / "task.json").write_text("{" + pairs + "}")
    return ivlens.load_task(here / "task.json")


def _depth(the: Things, here: Path, draw: random.Random) -> Any:
    """Lists in lists, or one list of very many."""
    n, open, shut = int(10 ** draw.uniform(1, 6)), *draw.choice(["[]", "{}"])
    inner = open * n + shut * n if draw.random() < 0.5 else "[" + ", ".join(["[]"] * n) + "]"
    (here / "task.json").write_text(f'[{{"input": "a", "output": {inner}}}]')
    return ivlens.load_task(here / "task.json")


def _columns(the: Things, here: Path, draw: random.Random) -> Any:
    """A table of very many columns, or a field of megabytes."""
    n, field = int(10 ** draw.uniform(1, 5)), int(10 ** draw.uniform(1, 6.5))
    header = ["input", "output", *(f"c{number}" for number in range(n))]
    (here / "task.csv").write_text(",".join(header) + "\na,b," + "x" * field + "\n")
    return ivlens.load_task(here / "task.csv")


def _changed(the: Things, here: Path, name: str, change: Callable[[Any], None]) -> Any:
    shutil.copytree(the.root / "model", here / "model")
    path = here / "model" / name
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    model = ivlens.load_model(here / "model")
    return model(torch.tensor([[1, 2, 3]]))


def _configuration(the: Things, here: Path, draw: random.Random) -> Any:
    """Sizes and lists in a configuration that nothing in the weights asks for."""
    value = draw.choice([int(10 ** draw.uniform(3, 12)), {str(n): f"L{n}" for n in range(10 ** draw.randint(1, 5))}])
    name = draw.choice(["num_labels", "id2label", "vocab_size", "num_hidden_layers", "hidden_size", "head_dim"])
    other = "".join(draw.choices(string.ascii_lowercase, k=6))
    return _changed(the, here, "config.json", lambda all: all.update({draw.choice([name, other]): value}))


def _normaliser(the: Things, here: Path, draw: random.Random) -> Any:
    """A tokenizer that replaces a letter by very many, a few times."""
    text = draw.choice("aei ") * int(10 ** draw.uniform(1, 4))
    steps = [{"type": "Replace", "pattern": {"String": text[0]}, "content": text}] * draw.randint(1, 4)
    whole = {"type": "Sequence", "normalizers": steps}
    return _changed(the, here, "tokenizer.json", lambda all: all.update(normalizer=whole))


def _template(the: Things, here: Path, draw: random.Random) -> Any:
    """A chat template that loops, or doubles a text."""
    n, times = int(10 ** draw.uniform(1, 7)), draw.randint(4, 40)
    loops = "{% for a in range(" + str(n) + ") %}{{ messages[0]['content'] }}{% endfor %}"
    doubles = "{% set ns = namespace(t='xy') %}{% for a in range(" + str(times) + ") %}{% set ns.t = ns.t ~ ns.t %}"
    template = draw.choice([loops, doubles + "{% endfor %}{{ ns.t }}{{ messages[0]['content'] }}"])
    shutil.copytree(the.root / "model", here / "model")
    (here / "model" / "chat_template.jinja").write_text(template)
    model = ivlens.load_model(here / "model")
    return ivlens.build_prompts(model.tokenizer, the.task, the.task.examples[:1], ivlens.PromptRecipe(template="chat"))


class _Stream(io.RawIOBase):
    """Takes so many bytes, and then raises."""

    def __init__(self, room: int, error: Exception) -> None:
        self.room, self.error = room, error
        self._number = os.open(os.devnull, os.O_WRONLY)

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._number

    def write(self, data: Any) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise self.error
        return len(data)


def streams(the: Things, draw: random.Random) -> Cases:
    """Standard output that is closed, full, gone, or knows few letters, at any byte."""
    task, store = str(the.root / "task.json"), str(the.root / "nowhere")
    commands = [
        ["--help"], ["--version"], ["get", "--list"], ["effects", "--help"], ["get", "--list", "--json"], ["nothing"],
        ["store", "ls", store], ["effects", "--task", task, "--model", store], ["tune", "--help"], ["demo", "--help"],
    ]  # fmt: skip

    def run(command: list[str], room: int, error: Exception | None, encoding: str) -> Any:
        before = sys.stdout, sys.stderr
        raw = _Stream(room, error or ValueError("I/O operation on closed file."))
        sys.stdout, sys.stderr = io.TextIOWrapper(io.BufferedWriter(raw, 64), encoding=encoding), io.StringIO()
        if error is None:
            sys.stdout.close()
        try:
            status = main(command)
        except SystemExit as end:  # of rich, where the reader of a help page is gone
            status = end.code
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.detach()
            sys.stdout, sys.stderr = before
            os.close(raw._number)
        assert status in (0, 1, 2, 141), f"status {status}"
        return AGAIN if status else None

    while True:
        codes = [errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF, None]
        code = draw.choice(codes)
        error = None if code is None else OSError(code, os.strerror(code))
        drawn = draw.choice(commands), draw.choice([0, draw.randrange(5000)]), error
        encoding = draw.choice(["utf-8", "ascii", "latin-1", "cp1252"])
        yield lambda drawn=drawn, encoding=encoding: run(*drawn, encoding)


def tasks(the: Things, draw: random.Random) -> Cases:
    """Coroutines of one thread that enter and leave `steer` in any order: each sees its own vectors, or is refused."""
    model, batch, known = the.model, the.batch, {}

    def passed() -> torch.Tensor:
        return model(batch.tokens, attention_mask=batch.attention_mask)[:, -1]

    def entered(stack: contextlib.ExitStack, alpha: float) -> None:
        stack.enter_context(ivlens.steer(model, the.iv, layer=0, alpha=alpha))

    def alone(alphas: tuple[float, ...]) -> torch.Tensor:
        if alphas not in known:
            with contextlib.ExitStack() as stack:
                for alpha in alphas:
                    entered(stack, alpha)
                known[alphas] = passed()
        return known[alphas]

    async def actor(steps: list[tuple[str, float]]) -> int:
        n_refused, open = 0, list[tuple[float, contextlib.ExitStack]]()
        for what, alpha in steps:
            await asyncio.sleep(0)
            try:
                if what == "enter":
                    stack = contextlib.ExitStack()
                    entered(stack, alpha)
                    open.append((alpha, stack))
                elif what == "leave" and open:
                    open.pop()[1].close()
                found = passed()
            except RuntimeError as error:
                assert "steer" in str(error) and len(str(error)) < 400, error
                n_refused += 1
                continue
            assert torch.equal(found, wanted[tuple(each for each, _ in open)]), "steered by somebody else's vector"
        while open:
            await asyncio.sleep(0)
            with contextlib.suppress(RuntimeError):  # no pass was made in it
                open.pop()[1].close()
        return n_refused

    async def together(drawn: list[list[tuple[str, float]]]) -> int:
        return sum(await asyncio.gather(*map(actor, drawn)))

    strengths = (0.0, 1.0, -2.0, 4.0)
    wanted = {each: alone(each) for n in range(5) for each in itertools.product(strengths, repeat=n)}

    def case(drawn: list[list[tuple[str, float]]]) -> Any:
        with torch.no_grad():
            refused = asyncio.run(together(drawn))
            assert torch.equal(passed(), wanted[()]), "a vector stays behind"
        return AGAIN if refused else None

    while True:
        drawn = []
        for _ in range(draw.randint(2, 4)):
            steps = [
                (draw.choice(["enter", "leave", "pass"]), draw.choice(strengths)) for _ in range(draw.randint(1, 5))
            ]
            n_entered = list(itertools.accumulate((what == "enter") - (what == "leave") for what, _ in steps))
            drawn.append(steps if max(n_entered) <= 3 else steps[:3])
        yield lambda drawn=drawn: case(drawn)


KINDS: dict[str, Callable[[Things, random.Random], Cases]] = {
    "identities": identities,
    "files that unfold": unfolding,
    "closed streams": streams,
    "steering across await": tasks,
}


def run(kind: str, n: int, seed: int) -> Tally:
    """Try `n` cases of a kind; AssertionError at the first that ends otherwise than it may."""
    tally = Tally()
    torch.set_num_threads(1)
    with workplace() as things:
        limited()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for call in itertools.islice(KINDS[kind](things, random.Random(seed)), n):
            attempt(call, tally)
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / (
            2**30 if sys.platform == "darwin" else 2**20
        )
        assert grown < GROWTH_GB, f"{grown:.1f} GB more"
    return tally


if __name__ == "__main__":
    tally = run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(
        json.dumps({"results": tally.results, "refused": tally.refused.total(), "slowest_s": round(tally.slowest, 2)})
    )
