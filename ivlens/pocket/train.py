"""Train the pocket model: `ivlens pocket train`.

One readable loop: seeded, resumable to the same weights, no pickle. A step depends on (seed, step) only.
"""

import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from ivlens.common.files import write_whole
from ivlens.common.saves import filling
from ivlens.pocket.corpus import Corpus, Mix, bank_hash
from ivlens.pocket.muon import StackedMuon
from ivlens.pocket.packing import PackedBatch, draw_batch, token_id
from ivlens.pocket.tokenizer import build_tokenizer
from ivlens.tasks.bank import load_bank


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights: same config, same weights (to the bit on one machine)."""

    seed: int = 0
    steps: int = 5000
    threads: int = 1
    n_layers: int = 6
    n_heads: int = 8
    d_model: int = 128
    d_mlp: int = 384
    n_ctx: int = 256
    rows: int = 26
    length: int = 96
    lr: float = 2.5e-3
    muon_lr: float = 0.02
    warmup: int = 100
    weight_decay: float = 0.05
    head_dropout: float = 0.0
    routed: float = 0.5
    optimizer: str = "muon"
    compile: bool = True
    mix: Mix = field(default_factory=Mix)


def build_model(config: TrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """A Llama-style model with tied embeddings, randomly initialised from the config's seed."""
    torch.manual_seed(config.seed)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.d_model,
        intermediate_size=config.d_mlp,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        max_position_embeddings=config.n_ctx,
        tie_word_embeddings=True,
        attention_bias=False,
        bos_token_id=token_id(tokenizer, "bos_token"),
        eos_token_id=token_id(tokenizer, "eos_token"),
        pad_token_id=token_id(tokenizer, "pad_token"),
    )
    shape._attn_implementation = "sdpa"
    return LlamaForCausalLM(shape)


@contextmanager
def dropped_heads(model: LlamaForCausalLM, p: float) -> Iterator[None]:
    """Drop whole heads of single tokens with probability `p` (scaled by 1/(1-p)), so that no head is indispensable."""
    n_heads = model.config.num_attention_heads

    def drop(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0]
        keep = torch.rand(*z.shape[:-1], n_heads, 1) >= p
        return ((z.unflatten(-1, (n_heads, -1)) * keep / (1 - p)).flatten(-2),)

    projections = [module for name, module in model.named_modules() if name.endswith("o_proj")]
    handles = [projection.register_forward_pre_hook(drop) for projection in projections] if p else []
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def batch_loss(model: LlamaForCausalLM, body: Any, batch: PackedBatch) -> Tensor:
    """Weighted mean cross-entropy in nats over the tokens that carry weight."""
    mask = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    hidden = body(input_ids=batch.tokens, attention_mask=mask, position_ids=batch.positions, use_cache=False)
    weights = batch.loss_weights[:, 1:]
    scored = weights > 0
    logits = model.lm_head(hidden.last_hidden_state[:, :-1][scored])
    losses = nn.functional.cross_entropy(logits, batch.tokens[:, 1:][scored], reduction="none")
    return (losses * weights[scored]).sum() / weights.sum()


def build_optimizers(model: LlamaForCausalLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms (or AdamW for all)."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    chosen = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in chosen]
    if config.optimizer == "adamw":
        return [
            torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=config.weight_decay)
        ]
    return [
        StackedMuon(matrices, lr=config.muon_lr, weight_decay=config.weight_decay),
        torch.optim.AdamW(others, lr=config.lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def schedule(step: int, config: TrainConfig) -> float:
    """Linear warm-up, then cosine to zero."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


class Trainer:
    """Holds the model, optimisers and corpus of one run; `run()` trains from the last checkpoint to the end."""

    def __init__(self, config: TrainConfig, out: Path, quiet: bool = False):
        torch.set_num_threads(config.threads)
        bank = load_bank()
        self.config, self.out, self.quiet = config, Path(out), quiet
        self.made_by = json.dumps({"config": asdict(config), "bank": bank_hash(bank)}, sort_keys=True)
        self.tokenizer = build_tokenizer(bank, config.n_ctx)
        self.corpus = Corpus(bank, config.mix)
        self.model = build_model(config, self.tokenizer)
        self.optimizers = build_optimizers(self.model, config)
        # Compiling needs a C++ compiler; without one the same steps run slower and differ in the last bits.
        compiled = config.compile and any(map(shutil.which, ("c++", "g++", "clang++")))
        self.body = torch.compile(self.model.model) if compiled else self.model.model
        self.step = 0

    def run(self, save_every: int = 250, stop_at: int | None = None) -> Path:
        """Train, saving resumable state every `save_every` steps; return the folder of the finished checkpoint."""
        self.out.mkdir(parents=True, exist_ok=True)
        self._resume()
        started, total = time.time(), 0.0
        self.model.train()
        with dropped_heads(self.model, self.config.head_dropout), (self.out / "log.jsonl").open("a") as log:
            while self.step < (stop_at or self.config.steps):
                total += self._train_step()
                if self.step % 50 == 0:
                    seconds = round(time.time() - started, 1)
                    row = {"step": self.step, "loss": round(total / 50, 4), "seconds": seconds}
                    print(json.dumps(row), file=log, flush=True)
                    if not self.quiet:
                        print(
                            f"step {self.step}/{self.config.steps}  loss {total / 50:.4f}  {seconds:.0f} s", flush=True
                        )
                    total = 0.0
                if self.step % save_every == 0 and self.step < self.config.steps:
                    self._save_state()
        return self._finish()

    def _train_step(self) -> float:
        config = self.config
        # Both generators restart at every step, so that a resumed run draws the same texts and drops the same heads.
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        rng = random.Random(f"{config.seed}/{self.step}")
        batch = draw_batch(
            self.corpus,
            self.tokenizer,
            rng,
            rows=config.rows,
            length=config.length,
            routed=config.routed,
            progress=self.step / config.steps,
        )
        loss = batch_loss(self.model, self.body, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group.setdefault("peak_lr", group["lr"])
                group["lr"] = group["peak_lr"] * schedule(self.step, config)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _state_file(self) -> Path:
        return self.out / "state.safetensors"

    def _save_state(self) -> None:
        tensors = {f"model/{name}": p.detach() for name, p in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors.update(
                    {f"optimizer/{i}/{index}/{key}": torch.as_tensor(value) for key, value in entries.items()}
                )
        # under one name: safetensors writes several in an order of the moment
        metadata = {"ivlens": json.dumps({"step": self.step, "made_by": self.made_by})}
        write_whole(self._state_file(), lambda partial: save_file(tensors, partial, metadata))

    def _resume(self) -> None:
        if not self._state_file().exists():
            return
        with safe_open(self._state_file(), "pt") as file:
            about = json.loads((file.metadata() or {}).get("ivlens", "{}"))
        if about.get("made_by") != self.made_by:
            raise ValueError(
                f"{self._state_file()} was written with other settings or another bank ({about.get('made_by')}), "
                f"expected {self.made_by}; repeat the settings, or choose another folder."
            )
        tensors = load_file(self._state_file())
        with torch.no_grad():
            for name, p in self.model.named_parameters():
                p.copy_(tensors[f"model/{name}"])
        for i, optimizer in enumerate(self.optimizers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in tensors.items():
                kind, *path = key.split("/")
                if kind == "optimizer" and path[0] == str(i):
                    state.setdefault(int(path[1]), {})[path[2]] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step = int(about["step"])

    def _finish(self) -> Path:
        self._save_state()
        folder = self.out / "checkpoint"
        self.model.eval()
        record = {"steps_done": self.step, **json.loads(self.made_by), "torch": torch.__version__}
        with filling(folder) as scratch:
            self.model.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            (scratch / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        return folder
