"""Trains the pocket model from scratch (`ivlens pocket train`).

What a step draws depends on the seed and the number of the step alone, so that a training that was interrupted and
resumed ends with the same weights as one that was not.
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
    """Everything that decides the weights: the same config gives the same weights, to the bit on one machine.

    Attributes:
        seed, steps, threads: seed of every draw, number of updates, threads of torch (sums depend on these).
        n_layers, n_heads, d_model, d_mlp, n_ctx: shape of the model.
        rows, length: rows of a batch, and tokens in a row.
        lr, muon_lr: peak learning rates of AdamW and Muon.
        warmup: steps until the learning rates reach their peak.
        weight_decay: weight decay, with `muon` of the blocks' matrices alone, with `adamw` of all weights.
        head_dropout: chance of each head to be left out at each token.
        routed: share of texts in which instruction and input meet only at the cue, see `packing.py`.
        optimizer: `muon`, or `adamw` for all weights.
        compile: whether the forward pass is compiled, where there is a C++ compiler.
        mix: kinds of training texts and their shares.
    """

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
    """A new Llama-style model with tied embeddings and random weights drawn from the config's seed."""
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
    """In the body, passes leave out each head at each token with probability `p`, so that no head is indispensable.

    The heads that stay are scaled by 1 / (1 - p), so that their sum stays the same on average.
    """
    n_heads = model.config.num_attention_heads

    def drop(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
        z = args[0]  # all heads' outputs side by side, before the output projection
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
    """Weighted mean cross-entropy, in nats, over the tokens with a weight above 0.

    Args:
        model: the model, whose `lm_head` is used.
        body: its decoder, as it is or compiled.
        batch: texts, their mask and the weights of their tokens.
    """
    mask = torch.zeros(batch.mask.shape).masked_fill(~batch.mask, torch.finfo(torch.float32).min)
    hidden = body(input_ids=batch.tokens, attention_mask=mask, position_ids=batch.positions, use_cache=False)
    weights = batch.loss_weights[:, 1:]  # the logits at a token predict the next one
    scored = weights > 0  # most tokens have no weight; leaving them out of the largest matrix saves much of the time
    logits = model.lm_head(hidden.last_hidden_state[:, :-1][scored])
    losses = nn.functional.cross_entropy(logits, batch.tokens[:, 1:][scored], reduction="none")
    return (losses * weights[scored]).sum() / weights.sum()


def build_optimizers(model: LlamaForCausalLM, config: TrainConfig) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks and AdamW for the rest, or AdamW for everything (`optimizer="adamw"`)."""
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
    """The factor of the learning rate at a step: a linear rise to 1, then a cosine down to 0."""
    if step < config.warmup:
        return (step + 1) / config.warmup
    return 0.5 * (1 + math.cos(math.pi * (step - config.warmup) / max(1, config.steps - config.warmup)))


class Trainer:
    """One training: its model, optimisers and texts. `run()` trains from the last saved state to the end.

    Args:
        config: everything that decides the weights.
        out: folder for the log, the state and the finished checkpoint.
        quiet: print no lines about the progress.
    """

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
        """Train, and return the folder of the finished checkpoint.

        Args:
            save_every: steps between two saved states, from which a later `run` goes on.
            stop_at: stop after this many steps in all, as if interrupted; None: train to the end.
        """
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
        """One update of the weights; returns the loss in nats."""
        config = self.config
        # Both generators restart at every step, so that a resumed run draws the same texts and drops the same heads.
        # The factor is larger than any number of steps: no two seeds share a step's draws.
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
                # the schedule overwrites the learning rate, so its peak is kept beside it
                group.setdefault("peak_lr", group["lr"])
                group["lr"] = group["peak_lr"] * schedule(self.step, config)
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        return loss.item()

    def _state_file(self) -> Path:
        return self.out / "state.safetensors"

    def _save_state(self) -> None:
        """Write weights, the optimisers' state and the number of steps, replacing the last state."""
        tensors = {f"model/{name}": p.detach() for name, p in self.model.named_parameters()}
        for i, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors.update(
                    {f"optimizer/{i}/{index}/{key}": torch.as_tensor(value) for key, value in entries.items()}
                )
        # one entry alone: safetensors writes several in a random order, and the file would differ each time
        metadata = {"ivlens": json.dumps({"step": self.step, "made_by": self.made_by})}
        write_whole(self._state_file(), lambda partial: save_file(tensors, partial, metadata))

    def _resume(self) -> None:
        """Go on from the state in the folder, if there is one.

        Raises:
            ValueError: the state belongs to a training with other settings or another bank.
        """
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
            # groups stay as built: their learning rates are the peaks, and the schedule computes the rest from the step
            optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
        self.step = int(about["step"])

    def _finish(self) -> Path:
        """Save the state, and the checkpoint with the record of how it was trained."""
        self._save_state()
        folder = self.out / "checkpoint"
        self.model.eval()
        record = {"steps_done": self.step, **json.loads(self.made_by), "torch": torch.__version__}
        with filling(folder) as scratch:
            self.model.save_pretrained(scratch)
            self.tokenizer.save_pretrained(scratch)
            (scratch / "training.json").write_text(json.dumps(record, indent=1) + "\n")
        return folder
