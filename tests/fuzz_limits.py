"""Files that exhaust: small ones that stand for gigabytes, for years of computing, or for a wait without an end.

For the tests and for benches/stress.py: `limit_targets(folder)` gives the same kind of targets as `make_targets`.
"""

import gzip
import io
import json
import os
import re
import shutil
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from conftest import byte_level_tokenizer, tiny_task
from families import hf_model
from fuzz_inputs import used_task
from fuzzing import Case, Sandbox, Tally, attempt
from hypothesis import strategies as st

LARGE = [10**5, 10**7, 10**9, 2**31, 2**40, 2**63, 10**30, 10**400, -1, 0, -(10**9)]
COUNTS = [
    "num_labels", "vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size",
    "num_attention_heads", "num_key_value_heads", "head_dim", "num_experts", "n_layer", "pretraining_tp",
]  # fmt: skip
_GROW = "{% set ns = namespace(x=BEGIN) %}{% for i in range(N) %}{% set ns.x = MORE %}{% endfor %}{{ ns.x }}"
_LOOPS = "{% for a in range(N) %}{% for b in range(N) %}{% for c in range(N) %}{% endfor %}{% endfor %}{% endfor %}"
TEMPLATES = {
    "nested": _LOOPS * 3,
    "double": _GROW.replace("BEGIN", "'aa'").replace("MORE", "ns.x ~ ns.x"),
    "add": _GROW.replace("BEGIN", "'aa'").replace("MORE", "ns.x + ns.x"),
    "lists": _GROW.replace("BEGIN", "[1]").replace("MORE", "[ns.x, ns.x]"),
    "replace": _GROW.replace("BEGIN", "'aa'").replace("MORE", "ns.x | replace('a', 'aa')"),
    "format": "{{ '%1000000000d' % N }}",
    "times": "{{ 'x' * (N * N * N) }}",
    "power": "{{ 9 ** (9 ** N) }}",
    "center": "{{ 'x' | center(N * N * N) }}",
    "method": "{{ 'x'.ljust(N * N * N) }}",
    "join": "{{ range(N * N) | join('x' * N * N) }}",
    "macro": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(N) }}",
    "compare": "{% set s = 'x' * N * N * 100 %}{% for i in range(N * N) %}{% if s[1:] in s %}{% endif %}{% endfor %}",
}
PATTERNS = [
    "(a+)+$",
    "(?:a|aa)+b",
    r"(.*)*x",
    "([a-z.]+)*!",
    r"(\w+\s?)*y",
    "(a?){N}a{N}",
    r"(.*a){N}",
    r"(?:\p{L}+)+#",
]
SPECIAL = ["fifo", "socket", "device", "sparse"]
ADAPTERS = [
    "r", "lora_alpha", "layer_replication", "target_modules", "exclude_modules", "rank_pattern", "modules_to_save",
    "trainable_token_indices", "megatron_config", "layers_to_transform", "peft_type",
]  # fmt: skip


class LimitTargets:
    """Each as a strategy of inputs and a function that tries one, as in `Targets`."""

    def __init__(self, folder: Path) -> None:
        import datasets  # noqa: F401 - the seconds of its import are not those of a case

        from ivlens.models import load_model
        from ivlens.tuning import Learner, TuneOptions
        from ivlens.tuning.training.data import training_set

        (folder / "sandbox").mkdir()
        self._sandbox, self._model = Sandbox(folder / "sandbox"), folder / "model"
        hf_model("llama", n_ctx=64).save_pretrained(self._model)
        byte_level_tokenizer().save_pretrained(self._model)
        model, task = load_model(self._model), tiny_task()
        learner = Learner(model)
        learner.learn(training_set(model, task, task.examples[:2]), TuneOptions(lr=1e-2, steps=1, batch_size=2))
        self._adapters = learner.save(folder / "adapters")
        self.tallies: dict[str, Tally] = {}

    def all(self) -> dict[str, tuple[st.SearchStrategy[Any], Case]]:
        """By name."""
        n, number = st.integers(2, 60), st.sampled_from(LARGE)
        names = sorted(path.name for path in self._model.iterdir())
        templates = st.sampled_from(sorted(TEMPLATES))
        kinds = st.sampled_from(["replace", "insert", "prepend", "pieces"])
        return {
            "limits, task files": (st.tuples(st.sampled_from(sorted(self._task_files())), n), self.task_file),
            "limits, configuration": (st.tuples(st.sampled_from(COUNTS), number), self.configuration),
            "limits, chat templates": (st.tuples(templates, st.integers(30, 300)), self.template),
            "limits, prompt templates": (st.tuples(st.sampled_from("><^0."), number), self.prompt_template),
            "limits, tokenizers": (st.tuples(kinds, n), self.tokenizer),
            "limits, patterns": (st.tuples(st.sampled_from(PATTERNS), n, st.booleans()), self.pattern),
            "limits, adapters": (st.tuples(st.sampled_from(ADAPTERS), number), self.adapters),
            "limits, pipes and devices": (st.tuples(st.sampled_from(names), st.sampled_from(SPECIAL)), self.special),
        }  # fmt: skip

    def _tried(self, name: str, call: Callable[[], Any]) -> None:
        attempt(call, self.tallies.setdefault(name, Tally()))
        self._sandbox.check()

    def _copy(self, source: Path) -> Path:
        self._sandbox.empty()
        return Path(shutil.copytree(source, self._sandbox.target / "copy"))

    def _task_files(self) -> dict[str, Callable[[int], bytes]]:
        return {
            "repeated.json": lambda n: ("{" + ",".join(f'"a":{i}' for i in range(2000 * n)) + "}").encode(),
            "same.jsonl": lambda n: "\n".join(f'{{"input":"a","output":"{i}"}}' for i in range(1000 * n)).encode(),
            "deep.json": lambda n: b"[" * 1000 * n + b"]" * 1000 * n,
            "lists.json": lambda n: b"[" + b"[]," * 100_000 * n + b"[]]",
            "header.csv": lambda n: b"a," * 100_000 * n + b"b\n1,2",
            "rows.csv": lambda n: b"a,b\n" * 50_000 * n,
            "cell.csv": lambda n: b"input,output\n" + b"x" * 2_000_000 * n + b",b\n",
            "quotes.tsv": lambda n: b"input\toutput\n" + b'"a\tb"c\n' * 5000 * n,
            "turns.json": lambda n: _turns(5000 * n),
            "choices.json": lambda n: _choices(10_000 * n),
            "letters.json": lambda n: json.dumps(
                [{"question": "q", "choices": ["a"], "answer": "z"}] * 1000 * n
            ).encode(),
            "bomb.jsonl.gz": lambda n: gzip.compress(b'{"input":"a","output":"b"}\n' * 50_000 * n, 6),
            "bomb.jsonl.zst": lambda n: _zstd(b'{"input":"a","output":"b"}\n' * 50_000 * n),
            "zeros.gz": lambda n: gzip.compress(bytes(2_000_000 * n), 6),
            "texts.parquet": lambda n: _parquet(50 * n, 10**5 * n),
            "numbers.parquet": lambda n: _parquet(10**5 * n, 1),
            "one.parquet": lambda n: _parquet(1, 5 * 10**6 * min(n, 28)),
        }

    def task_file(self, drawn: tuple[str, int]) -> None:
        name, n = drawn
        self._sandbox.empty()
        path = self._sandbox.target / name
        path.write_bytes(self._task_files()[name](n))
        self._tried("limits, task files", lambda: used_task(path))

    def configuration(self, drawn: tuple[str, int]) -> None:
        from ivlens.models import load_model

        folder = self._copy(self._model)
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**about, drawn[0]: drawn[1]}))
        self._tried("limits, configuration", lambda: load_model(folder))

    def template(self, drawn: tuple[str, int]) -> None:
        from ivlens.prompts.chats import Chat

        tokenizer = byte_level_tokenizer()
        before = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}{{ 'assistant:' }}"
        tokenizer.chat_template = before + re.sub(r"\bN\b", str(drawn[1]), TEMPLATES[drawn[0]])
        self._tried("limits, chat templates", lambda: Chat("chat", tokenizer, "2024-07-26"))

    def prompt_template(self, drawn: tuple[str, int]) -> None:
        from ivlens.prompts.templates import find_template

        self._sandbox.empty()
        path = self._sandbox.target / "mine.json"
        wide = "{input:" + f"{drawn[0]}{abs(drawn[1])}" + "}"
        path.write_text(json.dumps({"instructed": f"{{instruction}} {wide}:", "bare": f"{wide}:"}))
        self._tried("limits, prompt templates", lambda: find_template(str(path)))

    def tokenizer(self, drawn: tuple[str, int]) -> None:
        kind, n = drawn
        folder = self._copy(self._model)
        made = json.loads((folder / "tokenizer.json").read_text())
        doubled = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
        if kind == "replace":
            made["normalizer"] = {"type": "Sequence", "normalizers": [doubled] * n}
        elif kind == "insert":
            made["normalizer"] = {"type": "Replace", "pattern": {"Regex": "a*"}, "content": "x" * 1000 * n}
        elif kind == "prepend":
            made["normalizer"] = {"type": "Prepend", "prepend": "x" * 10 * n}
        else:
            piece = {"Sequence": {"id": "A", "type_id": 0}}
            made["post_processor"] = {
                "type": "TemplateProcessing", "single": [piece] * n * 10, "pair": [piece], "special_tokens": {},
            }  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(made))
        self._tried("limits, tokenizers", lambda: self._encoded(folder))

    def _encoded(self, folder: Path) -> None:
        from ivlens.models import load_model
        from ivlens.prompts.tokens import Encoder

        tokenizer: Any = load_model(folder).tokenizer
        assert len(Encoder(tokenizer).ids("a" * 40)) < 100_000

    def pattern(self, drawn: tuple[str, int, bool]) -> None:
        from ivlens.models import load_model

        pattern, n, in_adapter = drawn
        pattern = pattern.replace("N", str(n))
        if in_adapter:
            folder = self._adapter({"target_modules": pattern.replace(r"\p{L}", "[a-z]")})
            self._tried("limits, patterns", lambda: load_model(folder, base=self._model))
            return
        folder = self._copy(self._model)
        made = json.loads((folder / "tokenizer.json").read_text())
        made["pre_tokenizer"] = {
            "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
        }  # fmt: skip
        (folder / "tokenizer.json").write_text(json.dumps(made))
        self._tried("limits, patterns", lambda: self._encoded(folder))

    def _adapter(self, change: dict[str, Any]) -> Path:
        folder = self._copy(self._adapters)
        about = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(about | change))
        return folder

    def adapters(self, drawn: tuple[str, int]) -> None:
        from ivlens.models import load_model

        name, n = drawn
        values = {
            "layer_replication": [[0, n]] if n < 10**6 else [[0, 3]] * 7000,
            "target_modules": ["q_proj"] * min(abs(n), 10**5), "exclude_modules": "(a+)+" + "a" * min(abs(n), 1000),
            "rank_pattern": {f"layers.{i}.q_proj": 2 for i in range(min(abs(n), 20_000))},
            "modules_to_save": ["model", "layers", "0", "mlp", "lm_head"], "layers_to_transform": [n],
            "trainable_token_indices": [n], "megatron_config": {"a": 1}, "peft_type": "VERA",
        }  # fmt: skip
        folder = self._adapter({name: values.get(name, n)} | ({"r": n} if name == "peft_type" else {}))
        self._tried("limits, adapters", lambda: load_model(folder, base=self._model))

    def special(self, drawn: tuple[str, str]) -> None:
        from ivlens.models import load_model

        name, kind = drawn
        path = self._copy(self._model) / name
        path.unlink()
        put_special(path, kind)
        self._tried("limits, pipes and devices", lambda: load_model(path.parent))


def put_special(path: Path, kind: str) -> None:
    """Something that is no ordinary file."""
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the names of sockets are short
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
        os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        with path.open("wb") as file:
            file.truncate(20 * 2**30)


def _turns(n: int) -> bytes:
    """One conversation of very many turns."""
    turn = {"role": "user", "content": "a"}
    return json.dumps([{"messages": [turn, {"role": "assistant", "content": "b"}, *[turn] * n]}]).encode()


def _choices(n: int) -> bytes:
    """One question with very many choices, of which the last one is right."""
    return json.dumps([{"question": "q", "choices": list(map(str, range(n))), "answer": str(n - 1)}]).encode()


def _zstd(content: bytes) -> bytes:
    import pyarrow

    return pyarrow.compress(content, codec="zstd", asbytes=True)


def _parquet(n_rows: int, width: int) -> bytes:
    """A few kilobytes that stand for `n_rows` texts of `width` letters."""
    import pyarrow as pa
    import pyarrow.parquet

    texts = pa.DictionaryArray.from_arrays(pa.array([0] * min(n_rows, 10**7), pa.int32()), pa.array(["x" * width]))
    stream = io.BytesIO()
    pyarrow.parquet.write_table(pa.table({"input": texts, "output": texts}), stream, compression="zstd")
    return stream.getvalue()


def compressed_bin(path: Path, n: int) -> None:
    """A `.bin` as torch writes it, but with its parts compressed."""
    import torch

    whole = io.BytesIO()
    torch.save({"w": torch.zeros(n)}, whole)
    with zipfile.ZipFile(whole) as read, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        for item in read.infolist():
            written.writestr(item.filename, read.read(item))


def expanded_bin(path: Path, n: int) -> None:
    """A `.bin` with one number that stands for `n * n`."""
    import torch

    torch.save({"w": torch.zeros(1).expand(n, n)}, path)


def limit_targets(folder: Path) -> LimitTargets:
    """A sandbox, with a model and adapters that are whole."""
    return LimitTargets(folder)
