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
# # 3 · What fine-tuning forgets
#
# A model is taught one new task, and old tasks get worse. Has it lost what it *knew*, or does it no longer do what it is
# *told*? And the Instruction Vector: is it gone, or is it still there and no longer used? Each question has a measurement.
#
# The training here is short and rough on purpose (one seed, a high learning rate), so that something is forgotten within
# seconds: at half the rate, 1e-3, accuracy on the old tasks stayed at 1.00. For another model choose tasks that it does
# well, and a learning rate that suits it.

# %%
MODEL = "pocket"
NEW = "middle_of_three"  # pocket was not trained on it
OLD = ["antonym", "english_french", "country_capital"]

import pandas as pd

import ivlens
from ivlens.analysis.dynamics import CausalOptions, Recorder, TrackOptions, causal_tests, leads
from ivlens.analysis.forgetting import ProbeOptions, decompose
from ivlens.steering.search import Grid
from ivlens.tuning import Along, TuneOptions

model = ivlens.load_model(MODEL)
new, old = ivlens.load_task(NEW), [ivlens.load_task(name) for name in OLD]

# %% [markdown]
# ## Teach it, and watch
#
# LoRA on the query and value projections, as in the papers. A *recorder* measures the vectors of the old tasks every 16
# steps while the training runs; no checkpoint is written. The model that we hold stays as it is: `finetune` trains a copy.

# %%
recorder = Recorder(model, old, TrackOptions(n_prompts=12, n_judge_prompts=32))
options = TuneOptions(lr=2e-3, steps=48, batch_size=32, judge_every=6)
result = ivlens.finetune(model, new, options=options, watch=old, along=Along(record=recorder, record_every=16))
result.scores.round(2)

# %%
from ivlens.show.figures import training_curves

training_curves(result.log)

# %% [markdown]
# **The curves.** Solid: the new task, learned slowly. Dashed: the old tasks, instructed as before, on inputs that are never
# trained. They may fall long before the new task is learned.
#
# ## Instruction or knowledge?
#
# The same content can be asked for with an instruction, or in a cloze without any (*“The capital of Peru is”*). The first
# needs the instruction to be followed, the second only the knowledge. Below is the probability of the right answer, before
# and after; `excess` is how much more the instruction's part fell, in nats of log-odds, with its interval.

# %%
drops = decompose(model, result.model, old, ProbeOptions(n_prompts=32))
columns = ["instruction_before", "instruction_after", "knowledge_before", "knowledge_after", "excess", "excess_lo"]
drops.query("measure == 'prob'").set_index("task")[[*columns, "excess_hi"]].round(2)

# %%
from ivlens.show.figures import forgetting_plot

forgetting_plot(drops, measure="prob")

# %% [markdown]
# **The lines.** How far the right answer's probability fell, from the open mark to the filled one: asked with the instruction
# (blue), and in clozes (orange). If the blue lines are longer, the model forgot to do what it is told more than it forgot what
# it knew. Read `excess` for the verdict: an interval that includes zero leaves it open. In `pocket` knowledge falls too, unlike
# in the large models of the papers, but much less.
#
# ## Is the vector still there?
#
# What the recorder saw: the cosine between each task's vector before training and along it, beside accuracy.

# %%
dynamics = recorder.dynamics()
dynamics.tasks.pivot(index="step", columns="task", values=["iv_cosine_fixed", "accuracy"]).round(2)

# %%
from ivlens.show.figures import dynamics_curves

dynamics_curves(dynamics.tasks)

# %% [markdown]
# **Two panels.** Left: what the model still does. Right: how far each task's vector has turned away from where it was, beside
# how alike vectors of two halves of the prompts are, and those of different tasks. The papers found, in large models, that the
# right stays high while the left collapses: the vector survives, unused. Here, with a high learning rate, it turns as well.
#
# ## Written, read, restored?
#
# A cosine does not say whether the vector still *works*. Three tests do, each beside controls that get the same search:
#
# - **write**: the tuned model's vector, put into the *original* model without instruction. Does it still steer?
# - **read**: the original's vector, put into the *tuned* model without instruction. Is it still understood?
# - **reinjection**: the original's vector, put into the tuned model *with* the instruction. Does it bring the task back?

# %%
stages = dynamics.stages[0], dynamics.stages[-1]
settings = CausalOptions(grid=Grid(layers=(0, 1, 2, 3), alphas=(1.0, 2.0, 4.0)), n_prompts=32, n_draws=3)
tests = causal_tests(model, result.model, stages, old, tests=("write", "read", "reinjection"), options=settings)
table = pd.DataFrame({name: {what: value[0] for what, value in found.items()} for name, found in leads(tests).items()}).T
table.round(2)

# %%
from ivlens.show.figures import causal_plot

causal_plot(pd.concat([test.frame() for test in tests]))

# %% [markdown]
# **The marks.** Large ones are means over tasks. In each row the blue circle has to be clearly right of all orange marks, the
# controls, for the test to say yes. *Written and read, while the instructed model
# fails*, is what the papers call an overlaid instruction, as opposed to an erased one. Few prompts, three draws and one seed are
# a quick look: `n_draws=19` and several seeds are needed before you believe it.
#
# **Next:** [4 · Guided fine-tuning](4_guided_tuning.ipynb).
