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
# The whole way with a checkpoint from a folder and a task from a file, as you would bring them. Here the checkpoint is
# SmolLM2-135M-Instruct (`ivlens get smollm2` brings it), and the file is made first; replace the two by yours.

# %%
CHECKPOINT = "smollm2"  # or a folder with config.json and weights, a .gguf file, a name on the Hub
TASK_FILE = None  # CSV, JSON, JSONL ...; None: one is made below

from pathlib import Path
from tempfile import mkdtemp

import pandas as pd

import ivlens

folder = Path(mkdtemp())
model = ivlens.load_model(CHECKPOINT)
print(type(model).__name__, "with", model.cfg.n_layers, "layers of", model.cfg.n_heads, "heads")

# %% [markdown]
# `load_model` compares the logits with those of the plain model before it returns. If your architecture cannot be wrapped
# faithfully you get an error here, rather than wrong effects later.
#
# ## A task
#
# A table with the columns `input` and `output` is enough. Several rows with one input give alternative answers; a column
# `instruction` adds ways to say it. This one asks for the *past tense*, in a CSV file:

# %%
if TASK_FILE is None:
    TASK_FILE = folder / "past-tense.csv"
    bank = ivlens.load_task("present_past")
    rows = [
        (bank.instructions[number % 4], example.input, answer)
        for number, example in enumerate(bank.examples)
        for answer in example.answers
    ]
    pd.DataFrame(rows, columns=["instruction", "input", "output"]).to_csv(TASK_FILE, index=False)
print(Path(TASK_FILE).read_text().splitlines()[:4])

task = ivlens.load_task(TASK_FILE)
print(task.name, "·", len(task), "inputs ·", len(task.instructions), "instructions ·", len(task.skipped), "rows left out")
print({part: len(task.split(part)) for part in ("fit", "select", "test")})

# %% [markdown]
# ## Does the model do the task, and how has it to be asked?
#
# Before anything is measured: the share of right answers to clean prompts of several forms, and to the bare input. If *clean* is
# low however you ask, no vector will help. If *bare* is high, the input alone tells the task, and a vector has nothing to show.

# %%
search = ivlens.find_prompts(model, task, templates=["plain", "chat"], shots=(0, 5), n_prompts=12)
search.table.round(2)

# %%
recipe = search.best
print(recipe)

# %% [markdown]
# All of this is done for you where you write `recipe="auto"`, and remembered for the model and the task. What wins a search is
# seldom quite as good as it looked: the clean accuracy below is of other inputs.
#
# ## Effects and the vector
#
# Demonstrations alone are corrupted by shuffling their answers. Instructions are exchanged for those of other tasks that contain
# the same inputs; for data of your own, pass some: `ivlens.EffectOptions(others=[...])`.

# %%
options = ivlens.EffectOptions(n_mean_prompts=32)
effects = ivlens.head_effects(model, task, recipe=recipe, n_prompts=16, options=options)
print(f"clean {effects.clean_accuracy:.2f}, bare {effects.bare_accuracy:.2f} · engine: {effects.method}")
effects.plot()

# %% [markdown]
# **The map.** Blue heads raise the right answer's probability when their mean output under clean prompts is put into a
# corrupted one; the ten strongest are outlined, and grey ones have an interval that includes zero. If the map is empty, compare the scores with and without corruption: where the model answers rightly all the
# same, nothing is left to gain.
#
# ## Judge it
#
# The search over layers and strengths runs on `select`, the verdict on `test`, and every control gets the same search.

# %%
iv = ivlens.InstructionVector.from_effects(effects, k=10)
grid = ivlens.Grid(layers=range(8, 20, 3), alphas=(1.0, 2.0, 4.0), sites=("resid_post",), n_screen=8, n_finalists=3)
judge = ivlens.JudgeOptions(means=effects, other_vectors=())
evaluation = ivlens.evaluate_intervention(model, task, iv, at=grid, n_prompts=24, n_draws=3, options=judge)
evaluation.plot()

# %% [markdown]
# **The marks.** Compare the vector (filled circle) with the *bare input* and with the orange controls, above all with random
# heads. Three draws and 24 inputs are a first look; 19 draws are the least for a statement.
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
# Two lines: the name, and where it runs. Everything after them is what was just run on the small model, on purpose with less of
# everything. The form that was found goes with the effects into the vector, and from there into the judgement; here it is passed
# on by hand, so that you see where.

# %%
NAME = CHECKPOINT  # "meta-llama/Llama-2-7b-chat-hf"
PLACE = {"device": "auto", "dtype": "auto"}  # {"device": "cuda", "dtype": "bfloat16"}

big = ivlens.load_model(NAME, **PLACE)
form = ivlens.find_prompts(big, task, templates=["chat", "plain"], shots=(5,), n_prompts=8).best
options = ivlens.EffectOptions(n_mean_prompts=16, max_memory=4 * 2**30)
found = ivlens.head_effects(big, task, recipe=form, n_prompts=8, score="logprob", options=options)
vector = ivlens.InstructionVector.from_effects(found, k=10)
grid = ivlens.Grid(layers=range(8, 16, 4), alphas=(2.0, 4.0), sites=("resid_post",))
judge = ivlens.JudgeOptions(means=found, other_vectors=())
ivlens.evaluate_intervention(big, task, vector, recipe=form, at=grid, n_prompts=16, n_draws=2, options=judge)

# %% [markdown]
# - `dtype="bfloat16"`: effects, means and vectors are still kept in float32. On a small model single effects drown in the
#   rounding of half precision; leave those in float32.
# - `"chat"` is the model's own chat template, with the demonstrations as turns of the talk: what a large chat model is used to.
#   This small one answers better in plain text.
# - `score="logprob"` where the right answer's probability is tiny without the demonstrations.
# - `max_memory`: by default a part of what the machine has; name less where you share the GPU.
# - A model on several GPUs: load it with `device_map` yourself, and pass it as `hf_model=`.
