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
# The five likeliest next tokens for one prompt, plain and with the vector. The *logit lens* reads the residual stream after every layer
# as the model reads its last one; the last layer is the model's own output.

# %%
from ivlens.analysis.inside import LensOptions

lens = ivlens.logit_lens(model, prompts[0], iv, at=AT, options=LensOptions(k=5, follow=[" walks", " walk"]))
output = lens.frame().query("layer == layer.max()")
output.pivot(index="rank", columns="run", values=["token", "prob"]).round(2)

# %% [markdown]
# Plain: what the model would say. Patched: the same model, a moment later, with the vector. The mass moves to verbs, most of
# them in the third person, although nothing in the prompt asks for that. And where in the model does this happen?

# %%
lens.plot()

# %% [markdown]
# **The lines.** The probability of two next tokens, as it stands after each layer; the dotted line is where the vector goes in. It
# takes several more layers until a token comes of it: what the vector holds is read by them, and not a word that is written down.
# For this input it is a close race.
#
# ## How strongly, and where?
#
# The probability of the right answer at layers and strengths, on *select* inputs.

# %%
from ivlens.show.figures import strength_map

grid = ivlens.Grid(layers=range(0, model.cfg.n_layers, 3), alphas=(0.5, 1.0, 2.0, 4.0, 8.0), sites=(SITE,))
strength_map(ivlens.sweep_settings(model, ivlens.load_task(TASK), iv, grid=grid, n_prompts=16), metric="prob")

# %% [markdown]
# **The map.** The darker, the more probable the right answer. Outlined: the best setting; even there the answer has a quarter of the
# probability on average, and what counts is whether any other token has more. Sixteen prompts are enough to see where to look; for a
# judgement, `evaluate_intervention` searches on these inputs and judges on others.
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
