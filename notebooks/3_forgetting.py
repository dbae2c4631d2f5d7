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
import plotly.graph_objects as go

from ivlens.show.figures.theme import LIGHT, styled

shown = drops.query("measure == 'prob'")
bars = go.Figure()
for kind, colour in (("instruction", LIGHT.accent), ("knowledge", LIGHT.control)):
    reach = {"array": shown[f"{kind}_drop_hi"] - shown[f"{kind}_drop"],
             "arrayminus": shown[f"{kind}_drop"] - shown[f"{kind}_drop_lo"]}  # fmt: skip
    bars.add_bar(name=kind, x=shown["task"], y=shown[f"{kind}_drop"], marker_color=colour, error_y=reach)
styled(bars, LIGHT, "What was lost", "95 % interval over examples", height=340)
bars.update_yaxes(title_text="drop of the answer's probability")

# %% [markdown]
# **The bars.** How far the right answer's probability fell, asked with the instruction (blue) and in clozes (orange). If
# the blue bars are longer, the model forgot to do what it is told more than it forgot what it knew. Read `excess` for the
# verdict: an interval that includes zero leaves it open. In `pocket` knowledge falls too, unlike in the large models of the
# papers, but much less.
#
# ## Is the vector still there?
#
# What the recorder saw: the cosine between each task's vector before training and along it, beside accuracy.

# %%
dynamics = recorder.dynamics()
dynamics.tasks.pivot(index="step", columns="task", values=["iv_cosine_fixed", "accuracy"]).round(2)

# %%
from plotly.subplots import make_subplots

lines = make_subplots(rows=1, cols=2, horizontal_spacing=0.12)
for task, dash, symbol in zip(OLD, ("solid", "dash", "dot"), ("circle", "square", "diamond"), strict=True):
    rows = dynamics.tasks.query("task == @task")
    for column, value in ((1, "iv_cosine_fixed"), (2, "accuracy")):
        lines.add_scatter(x=rows["step"], y=rows[value], name=task, row=1, col=column, showlegend=column == 1,
                          mode="lines+markers", line={"color": LIGHT.accent, "dash": dash},
                          marker={"symbol": symbol, "size": 8})  # fmt: skip
styled(lines, LIGHT, "The vector and the behaviour", "same heads throughout · select inputs", height=360)
lines.update_xaxes(title_text="training step").update_yaxes(range=[-0.05, 1.05])
lines.update_yaxes(title_text="cosine with the vector before", row=1, col=1)
lines.update_yaxes(title_text="accuracy (share of prompts)", row=1, col=2)

# %% [markdown]
# **Two panels.** Left: how far each task's vector has turned away from where it was. Right: what the model still does. The
# papers found, in large models, that the left stays high while the right collapses: the vector survives, unused. Here, with
# a high learning rate, it turns as well.
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
names = {"baseline": ("no vector", "line-ns-open", LIGHT.text), "iv": ("the vector", "circle", LIGHT.accent),
         "control": ("its strongest control", "square", LIGHT.control),
         "clean": ("with the instruction", "circle-open", LIGHT.text)}  # fmt: skip
dots = go.Figure()
for name, (label, symbol, colour) in names.items():
    dots.add_scatter(x=table[name], y=table.index, name=label, mode="markers",
                     marker={"symbol": symbol, "size": 12, "color": colour, "line": {"width": 2, "color": colour}})  # fmt: skip
styled(dots, LIGHT, "Is the vector written, read, and does it restore?", "means over tasks, test inputs", height=300)
dots.update_xaxes(title_text="accuracy (share of prompts)", range=[-0.03, 1.03])
dots.update_yaxes(autorange="reversed", automargin=True)

# %% [markdown]
# **The marks.** In each row the blue circle has to be clearly right of the orange square, which is the best of all controls
# (random vectors, random heads, other tasks' vectors), for the test to say yes. *Written and read, while the instructed model
# fails*, is what the papers call an overlaid instruction, as opposed to an erased one. Few prompts, three draws and one seed are
# a quick look: `n_draws=19` and several seeds are needed before you believe it.
#
# **Next:** [4 · Guided fine-tuning](4_guided_tuning.ipynb).
