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
# # 4 · Guided fine-tuning
#
# Can a model learn a new task and keep what it could? *Guidance* adds something to the training that holds on to the old
# computation. We train the same task four times, from the same model and seed, and compare what is forgotten **at equal
# scores on the new task**: a training that learns little also forgets little, which is no achievement.

# %%
MODEL = "pocket"
NEW = "middle_of_three"
OLD = ["antonym", "english_french", "capitalize"]
KINDS = ["none", "heads", "heads/random_heads", "instructions_lighter"]

import pandas as pd

import ivlens
from ivlens.runs.suites import drilled
from ivlens.tuning import RECIPES, TuneOptions, guidance_by_name

model = ivlens.load_model(MODEL)
new = drilled(ivlens.load_task(NEW))  # a rule, with inputs enough to learn it; for a task of your own leave drilled out
old = [ivlens.load_task(name) for name in OLD]

# %% [markdown]
# ## Kinds of guidance
#
# - **none**: plain LoRA.
# - **heads**: the outputs of the strongest heads of the old tasks are held near their old values on the new task's prompts.
# - **heads/random_heads**: its control. As many heads, drawn at random: if this does as well, *which* heads are held does
#   not matter.
# - **instructions_lighter**: the new task's inputs are also asked under *old* instructions, and the answers must stay what they
#   were. No old examples are needed.
#
# Others are there too, with the controls of each behind a slash:

# %%
print(*RECIPES, sep=", ")

# %%
results = {}
options = TuneOptions(lr=4e-3, steps=96, batch_size=32, judge_every=8)
for kind in KINDS:
    guidance = guidance_by_name(kind, model, new, earlier=old)
    results[kind] = ivlens.finetune(model, new, guidance=guidance, options=options, watch=old)
scores = pd.DataFrame({kind: result.scores.set_index("task")["after"] for kind, result in results.items()})
scores.insert(0, "before", results["none"].scores.set_index("task")["before"])
scores.round(2)

# %% [markdown]
# Accuracy on test inputs. The first row is the new task, the others are old ones that were never trained here. Read the first
# row too: a kind of guidance that keeps the old tasks may have learned less of the new one.
#
# ## Forgetting against learning

# %%
from ivlens.show.figures import forgetting_against_learning

curves = pd.concat([result.log.query("judged == 1").assign(guidance=kind) for kind, result in results.items()])
forgetting_against_learning(curves, kinds=KINDS)

# %% [markdown]
# **The figure.** Each line is one training, from its first judgement on: to the right it learns, downward it forgets. The better
# kind is the one that is *higher at the same distance to the right*. Where lines cannot be compared, because one never gets as
# far to the right, nothing can be said about them; train longer. In the run that is kept here, holding the strongest heads
# keeps no more than holding random ones up to a score of 0.5 on the new task, and more beyond it.
#
# ## What is added to the loss?
#
# Every term is logged, as it is weighted. A term that is much smaller than the task's own loss does nothing; one that is much
# larger stops the learning.

# %%
terms = results["heads"].log
terms[[name for name in terms if name not in ("lr", "seconds", "judged", "new", "watched")]].iloc[[0, 7, 47, 95]].round(4)

# %% [markdown]
# ## What you get
#
# The tuned model is a bridge like any other; adapters are saved in peft's own format, and load without ivlens.

# %%
from pathlib import Path
from tempfile import mkdtemp

folder = results["instructions_lighter"].learner.save(Path(mkdtemp()) / "adapters")
print(sorted(path.name for path in folder.iterdir()))
tuned = ivlens.load_model(folder, base=model)
print(tuned.generate("Input: big\nOutput:", max_new_tokens=2, do_sample=False, verbose=False))

# %% [markdown]
# One seed, one learning rate, few prompts: a way to see how it works, not a verdict. `ivlens bench` runs grids of methods,
# guidance, orders and seeds, with intervals over runs, and the documentation has what was found.
#
# **Next:** [5 · Your own model and data](5_your_own.ipynb).
