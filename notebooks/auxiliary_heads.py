# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Auxiliary heads
#
# How much gradient the auxiliary classifiers of GoogLeNet supply to the layers below them, in which
# direction, and whether they help. Takes about two minutes on two CPU cores, most of it compiling.
#
# Two GoogLeNets of 22 layers and width 8 without batch norm, one trained with heads on 4a and 4d
# (weight 0.3) and one without, on Fashion-MNIST at 14x14 pixels for five epochs.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from deepjax import analysis
from deepjax.analysis.plots import COLORS, STYLE
from deepjax.evaluation.trained.networks import load_trained
from deepjax.study.networks import SmallImageGoogLeNet

plt.style.use([STYLE, {"figure.dpi": 80}])

nets = {
    "with heads": load_trained("googlenet_heads", make=SmallImageGoogLeNet),
    "without": load_trained("googlenet", make=SmallImageGoogLeNet),
}
for name, net in nets.items():
    training, test = net.final["train_error"], net.final["test_error"]
    print(f"{name:10} training error {training:.1%}, test error {test:.1%}")

# %% [markdown]
# ## How much
#
# `loss_contributions` differentiates each loss on its own and compares the norms layer by layer,
# before training and after. The program is compiled once.

# %%
net = nets["with heads"]
batch = net.batch(64)
moments = {
    "before training": analysis.init_variables(net.model, jax.random.key(100), (1, 14, 14, 1)),
    "trained": net.variables,
}
found = {
    moment: analysis.loss_contributions(net.model, variables, batch, weights=0.3)
    for moment, variables in moments.items()
}

# %%
STAGES = (
    *("stem_conv1", "stem_reduce2", "stem_conv2", "inception3a", "inception3b"),
    *("inception4a", "inception4b", "inception4c", "inception4d", "inception4e"),
    *("inception5a", "inception5b"),
)
LABELS = [stage.replace("inception", "").replace("stem_", "") for stage in STAGES]
LOSSES = {"main": "main loss", "4a": "head on 4a", "4d": "head on 4d"}


def by_stage(result, loss, value, stages=STAGES):
    """Means over the layers of each stage."""
    rows = [row for row in result.rows() if row["loss"] == loss]
    return np.array(
        [np.mean([r[value] for r in rows if r["layer"].startswith(stage)]) for stage in stages]
    )


figure, axes = plt.subplots(1, 2, figsize=(10.4, 3.8), sharey=True)
below = {}
for ax, (moment, result) in zip(axes, found.items(), strict=True):
    bottom = np.zeros(len(STAGES))
    for (loss, label), color in zip(LOSSES.items(), COLORS, strict=False):
        part = by_stage(result, loss, "fraction")
        ax.bar(range(len(STAGES)), 100 * part, 0.75, bottom=100 * bottom, color=color, label=label)
        bottom += part
    below[moment] = 1 - by_stage(result, "main", "fraction")[:5].mean()
    ax.set_xticks(range(len(STAGES)), LABELS, rotation=60, ha="right")
    ax.set_title(f"{moment}: {below[moment]:.0%} below both heads")
axes[0].set(ylabel="% of the gradient's norm", ylim=(0, 100))
figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper")
plt.show()
assert min(below.values()) > 0.1

# %% [markdown]
# The claim of the lecture holds: heads inject gradient at the layers below them, and none above.
#
# ## In which direction
#
# Gradient is only of use if it points where the main loss points. The cosine of each head's
# gradient with that of the main loss, by stage:

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
for ax, (moment, result) in zip(axes, found.items(), strict=True):
    for loss, last, color in (("4a", 6, COLORS[1]), ("4d", 9, COLORS[2])):
        values = by_stage(result, loss, "cosine", STAGES[:last])
        ax.plot(range(last), values, "o-", color=color, label=LOSSES[loss])
    ax.axhline(0, color="0.6", linewidth=0.8)
    ax.set_xticks(range(9), LABELS[:9], rotation=60, ha="right")
    ax.set(title=moment, ylim=(-0.3, 1))
    ax.legend()
axes[0].set_ylabel("cosine with the main loss")
plt.show()
cosines = {m: by_stage(r, "4a", "cosine", STAGES[:6]).mean() for m, r in found.items()}
print({moment: f"{value:.2f}" for moment, value in cosines.items()})
assert cosines["trained"] > 0.3

# %% [markdown]
# After training both heads want much the same of the lower layers as the main classifier.
#
# ## What the heads know
#
# The heads are classifiers themselves. Their error on 2,000 test images, next to the main one's:

# %%
test = net.batch(2000, "test")


@jax.jit
def outputs(variables, images):
    return net.model.apply(variables, images, train=False, mutable=["auxiliary"])


logits, sown = outputs(net.variables, test["image"])
heads = {"4a": sown["auxiliary"]["4a"], "4d": sown["auxiliary"]["4d"], "main": logits}
errors = {name: float(analysis.error_rate(out, test)) for name, out in heads.items()}
print({name: f"{error:.1%}" for name, error in errors.items()})
assert max(errors.values()) < 0.25

# %% [markdown]
# ## Do they help?

# %%
figure, ax = plt.subplots(figsize=(7.4, 3.6))
for (name, each), color in zip(nets.items(), COLORS, strict=False):
    rows = [row for row in each.log if row["kind"] == "epoch"]
    ax.plot(
        [row["epoch"] for row in rows], [100 * row["test_error"] for row in rows], "o-",
        color=color, label=name,
    )  # fmt: skip
gain = nets["without"].final["test_error"] - nets["with heads"].final["test_error"]
ax.set(xlabel="epoch", ylabel="test error (%)", ylim=(0, None), xticks=range(1, 6))
ax.set_title(f"With this seed the heads save {100 * gain:.1f} points of test error")
ax.legend()
plt.show()

# %% [markdown]
# One seed shows nothing: between two seeds of one network the error differs by as much. The study
# of eight seeds (`auxiliary_heads` in docs/results/README.md) finds no certain gain, with batch
# norm or without, although the heads do supply gradient.
