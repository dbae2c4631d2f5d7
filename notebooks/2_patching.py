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
# # 2 · Patching a live model
#
# A vector in hand, we turn it on and off in a running model: at other layers and strengths, against demonstrations of another
# task, two at once, and as head outputs rather than as a sum. Always look at a control too.
#
# The model is SmolLM2-135M-Instruct (`ivlens get smollm2` brings it); the vectors are made from five demonstrations.

# %%
MODEL = "smollm2"
TASK, OTHER = "third_person", "present_gerund"
LAYER, ALPHA, SITE = 14, 2.0, "resid_post"  # found as in notebook 1; for another model, use its `evaluation.best`

import pandas as pd
import torch

import ivlens
from ivlens.forward.completions import complete, first_line

AT = ivlens.Setting(LAYER, ALPHA, SITE)
model = ivlens.load_model(MODEL)
recipe = ivlens.PromptRecipe("plain", instruction=None, n_shots=5)
options = ivlens.EffectOptions(n_mean_prompts=32)
vectors = {
    name: ivlens.InstructionVector.from_effects(
        ivlens.head_effects(model, ivlens.load_task(name), recipe=recipe, n_prompts=16, options=options), k=10
    )
    for name in (TASK, OTHER)
}
iv, other = vectors[TASK], vectors[OTHER]
print(iv, other, sep="\n")

# %% [markdown]
# ## On and off
#
# `steer` is a context manager. Inside it, every forward pass and every generation has the vector added at the last token of
# the prompt; outside, the model is untouched. Even an exception takes the hooks away.

# %%
words = ["walk", "catch", "hope", "fly", "wash"]
prompts = [f"Input: {word}\nOutput:" for word in words]
plain = complete(model, prompts, max_new_tokens=4)
with ivlens.steer(model, iv, at=AT):
    steered = complete(model, prompts, max_new_tokens=4)
with ivlens.steer(model, iv.random_like(seed=0), at=AT):
    control = complete(model, prompts, max_new_tokens=4)
columns = {"input": words, "plain": plain, "steered": steered, "random vector, same norm": control}
pd.DataFrame({name: [first_line(text) for text in texts] for name, texts in columns.items()})

# %% [markdown]
# Plain, the model has a lone word before it and does what it likes. With the vector it gives the form *he, she or it* takes, for
# four of these five. The control matters: a push of the same length in a random direction does not do that. It is the
# *direction* that counts.
#
# ## What it does to the next token
#
# The probabilities of the next token for one prompt, before and after:

# %%
import plotly.graph_objects as go

from ivlens.show.figures.theme import LIGHT, styled

tokens = model.tokenizer(prompts[:1], return_tensors="pt").input_ids.to(model.W_E.device)
with torch.no_grad():
    before = model(tokens)[0, -1].float().softmax(-1)
    with ivlens.steer(model, iv, at=AT):
        after = model(tokens)[0, -1].float().softmax(-1)
shown = list(dict.fromkeys([*after.topk(5).indices.tolist(), *before.topk(5).indices.tolist()]))
labels = [model.tokenizer.decode([token]).strip() or repr(token) for token in shown]
bars = go.Figure(
    [
        go.Bar(name="plain", x=labels, y=before[shown].tolist(), marker_color=LIGHT.reference),
        go.Bar(name="steered", x=labels, y=after[shown].tolist(), marker_color=LIGHT.accent),
    ]
)
styled(bars, LIGHT, f"Next token after {words[0]!r}", "the five most probable of each", height=340)
bars.update_yaxes(title_text="probability", range=[0, 1])

# %% [markdown]
# **The bars.** Grey: what the model would say. Blue: the same model, a moment later, with the vector. The mass moves to
# verbs, most of them in the third person, although nothing in the prompt asks for that. For this word it is a close race: *walk*
# itself is just ahead of *walks*.
#
# ## How strongly, and where?
#
# The probability of the right answer for one prompt, at every layer and strength. Strength 0 is the plain model.

# %%
right = model.tokenizer(" walks").input_ids[0]
alphas = [0, 0.5, 1, 2, 4, 8]
rows = []
for layer in range(0, model.cfg.n_layers, 2):
    for alpha in alphas:
        with torch.no_grad(), ivlens.steer(model, iv, layer=layer, alpha=alpha, site=SITE):
            probability = float(model(tokens)[0, -1].float().softmax(-1)[right])
        rows.append({"layer": layer, "alpha": alpha, "prob": probability})
table = pd.DataFrame(rows).pivot(index="alpha", columns="layer", values="prob")
heat = go.Figure(go.Heatmap(z=table, x=table.columns, y=[f"{alpha:g}" for alpha in alphas], zmin=0, zmax=1,
                            colorscale="Blues", colorbar_title="P(walks)"))  # fmt: skip
styled(heat, LIGHT, "Probability of 'walks' after 'walk'", f"site {SITE}", height=320)
heat.update_xaxes(title_text="layer", dtick=4).update_yaxes(title_text="strength α", type="category")

# %% [markdown]
# **The map.** Dark: the model is sure of the form. At twice the strength the early layers win this race. One prompt proves little; `sweep_settings` does the same over many, and
# `evaluate_intervention` judges on others.
#
# ## Against what the prompt shows
#
# Can the vector overrule the prompt? We *show* the model another task, by five demonstrations, and add the vector; then we take
# the shown task's own vector away as well, with a negative strength. Contexts nest and add up.

# %%
from ivlens.prompts.single import prompt_text

shown_task = ivlens.load_task(OTHER)
shown = [prompt_text(model.tokenizer, shown_task, word, recipe) for word in words]
following = complete(model, shown, max_new_tokens=4)
with ivlens.steer(model, iv, at=AT):
    overruled = complete(model, shown, max_new_tokens=4)
    with ivlens.steer(model, other, at=AT._replace(alpha=-ALPHA)):
        replaced = complete(model, shown, max_new_tokens=4)
columns = {"input": words, "as shown": following, "+ third person": overruled, "+ third person − gerund": replaced}
pd.DataFrame({name: [first_line(text) for text in texts] for name, texts in columns.items()})

# %% [markdown]
# The demonstrations keep writing through the model's own heads, so that the two pull in different directions. At this strength
# the vector wins, and to take the shown task's vector away as well adds nothing. Weaker, the demonstrations win: try it.
#
# ## The heads instead of their sum
#
# The same information can be put back where it was found: each of the ten heads gets its mean output over clean
# prompts, in its own layer. `alpha` is then the share of the way.

# %%
with ivlens.steer(model, iv, mode="heads", alpha=1.0):
    by_heads = complete(model, prompts, max_new_tokens=4)
pd.DataFrame({"input": words, "sum added": map(first_line, steered), "heads replaced": map(first_line, by_heads)})

# %% [markdown]
# ## Arithmetic
#
# Vectors are added, scaled and compared like any others; the result knows what it was made of.

# %%
mixed = 0.5 * iv + 0.5 * other
print(mixed)
print(f"cosine of the two: {iv.cosine(other):+.2f}; with their mean: {iv.cosine(mixed):+.2f}, {other.cosine(mixed):+.2f}")
with ivlens.steer(model, mixed, at=AT):
    print([first_line(text) for text in complete(model, prompts, max_new_tokens=4)])

# %% [markdown]
# ## What is refused
#
# A vector belongs to one set of weights. Used on others, it raises, and the message says what to do. (Injecting it into a
# tuned checkpoint on purpose is `iv.for_model(tuned)`, and is recorded.)

# %%
random_weights = ivlens.load_model(
    "random", hf_model=type(model.original_model)(model.original_model.config), tokenizer=model.tokenizer
)
try:
    with ivlens.steer(random_weights, iv, layer=LAYER):
        pass
except ValueError as error:
    print(error)

# %% [markdown]
# **Next:** [3 · What fine-tuning forgets](3_forgetting.ipynb).
