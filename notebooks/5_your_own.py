# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 5 · Your own model and data
#
# The whole way with a checkpoint from a folder and a task from a file, as you would bring them. The folder and the file are
# made here first, so that the notebook runs anywhere; replace the two paths by yours.

# %%
CHECKPOINT = None  # a folder with config.json and weights, or a name on the Hub; None: one is made below
TASK_FILE = None  # CSV, JSON, JSONL ...; None: one is made below

from pathlib import Path
from tempfile import mkdtemp

import pandas as pd

import ivlens

folder = Path(mkdtemp())

# %% [markdown]
# ## A checkpoint
#
# Any folder that `transformers` writes will do. Here we save the built-in model as a plain Hugging Face checkpoint, as a
# training script of your own would do, with nothing of ivlens in it.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

if CHECKPOINT is None:
    CHECKPOINT = folder / "my-checkpoint"
    AutoModelForCausalLM.from_pretrained(ivlens.pocket_path()).save_pretrained(CHECKPOINT)
    AutoTokenizer.from_pretrained(ivlens.pocket_path()).save_pretrained(CHECKPOINT)
print(sorted(path.name for path in Path(CHECKPOINT).glob("*")))

model = ivlens.load_model(CHECKPOINT)
print(type(model).__name__, "with", model.cfg.n_layers, "layers of", model.cfg.n_heads, "heads")

# %% [markdown]
# `load_model` compares the logits with those of the plain model before it returns. If your architecture cannot be wrapped
# faithfully you get an error here, rather than wrong effects later.
#
# ## A task
#
# A table with the columns `instruction`, `input` and `output` is enough. Several rows with one input give alternative answers;
# several instructions are paraphrases. This one asks for the *past tense*, in a CSV file:

# %%
if TASK_FILE is None:
    TASK_FILE = folder / "past-tense.csv"
    verbs = {example.input: example.answers[0] for example in ivlens.load_task("present_past").examples}
    told = ivlens.load_task("present_past").instructions[:4]
    rows = [(told[number % len(told)], verb, past) for number, (verb, past) in enumerate(verbs.items())]
    pd.DataFrame(rows, columns=["instruction", "input", "output"]).to_csv(TASK_FILE, index=False)
print(Path(TASK_FILE).read_text().splitlines()[:4])

task = ivlens.load_task(TASK_FILE)
print(task.name, "·", len(task), "inputs ·", len(task.instructions), "instructions ·", len(task.skipped), "rows left out")
print({part: len(task.split(part)) for part in ("fit", "select", "test")})

# %% [markdown]
# ## Does the model do the task?
#
# Before anything is measured: accuracy with the instruction and without. If it is low *with* the instruction, no vector
# will help. If it is high *without*, the task needs no instruction, and a vector has nothing to show.

# %%
from ivlens.forward.completions import complete, first_line

examples = task.split("test")[:32]
shares = {}
for name, corruption in (("with the instruction", None), ("without", "drop")):
    batch = ivlens.build_prompts(model.tokenizer, task, examples, corruption=corruption)
    answers = [first_line(text) for text in complete(model, batch.texts, max_new_tokens=4)]
    shares[name] = sum(answer in one.answers for answer, one in zip(answers, batch.examples, strict=True)) / len(batch)
print({name: round(share, 2) for name, share in shares.items()})

# %% [markdown]
# ## Effects and the vector
#
# Counterfactual instructions come from other tasks that contain the same inputs. The built-in bank has some for these verbs;
# for data of your own, pass yours: `head_effects(model, task, options=ivlens.EffectOptions(others=[...]))`. Where no task has these
# inputs, the instruction is left out instead, and `corruptions` says so.

# %%
from collections import Counter

effects = ivlens.head_effects(model, task, n_prompts=32)
print(Counter(effects.corruptions), "· engine:", effects.method)
effects.plot()

# %% [markdown]
# **The map.** Blue heads raise the right answer's probability when their mean output under your instruction is put into a
# prompt without it. If the map is empty, look at `effects.base_scores`: where the model answers rightly in spite of the
# corruption, nothing is left to gain.
#
# ## Judge it
#
# The search over layers and strengths runs on `select`, the verdict on `test`, and every control gets the same search.

# %%
iv = ivlens.InstructionVector.from_effects(effects, k=10)
evaluation = ivlens.evaluate_intervention(model, task, iv)
evaluation.plot()

# %% [markdown]
# **The marks.** Compare the vector (filled circle) with *no instruction* and with the orange controls, above all with random
# heads. Verbs have few possible answers, so that even without an instruction the model often gives some form of the verb.
#
# ## Keep the results, draw the figures
#
# Files say what they hold, so that `ivlens figures` finds its way in any folder.

# %%
results = folder / "results"
effects.save(results / "effects" / f"{task.name}.safetensors")
iv.save(results / "vectors" / f"{task.name}.safetensors")
evaluation.table.to_parquet(results / "conditions.parquet")

from ivlens.show.figures.export import write_set
from ivlens.show.figures.found import find_results
from ivlens.show.figures.kinds import draw_all

drawings, _ = draw_all(find_results(results))
files, trouble = write_set(drawings, folder / "figures", ["pdf"])
print(*(path.name for path in files), trouble)

# %% [markdown]
# The same on the command line: `ivlens figures --from results --out figures --format pdf`.
#
# ## What changes for 7B on a GPU
#
# ```python
# model = ivlens.load_model("meta-llama/Llama-2-7b-chat-hf", device="cuda", dtype="bfloat16")
# recipe = ivlens.PromptRecipe(template="chat")
# effects = ivlens.head_effects(model, task, recipe=recipe, n_prompts=25, score="logprob")
# ```
#
# - `dtype="bfloat16"`: effects, means and vectors are still kept in float32.
# - `template="chat"` for a chat model: its own chat template, with the instruction in the user's message.
# - `score="logprob"` where the right answer's probability is tiny without the instruction.
# - `k=10` heads suit 7B; the search goes over all layers, so restrict it at first:
#   `evaluate_intervention(..., at=ivlens.Grid(layers=range(6, 16)))`.
# - Memory: `EffectOptions(max_memory=20 * 2**30)`; by default a part of what the machine has.
# - A model on several GPUs: load it with `device_map` yourself, and pass it as `hf_model=`.
