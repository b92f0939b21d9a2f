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
# # Gradients of plain and residual networks
#
# What gradients do in plain and residual networks, layer by layer and epoch by epoch, and why the
# plain one of 44 layers trains badly. Takes about two minutes on two CPU cores.
#
# The networks of He et al. 2015 (width 8) were trained on Fashion-MNIST at 14x14 pixels for twelve
# epochs, and are part of deepjax. Instruments take any network of linen, NNX or plain JAX.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn
from matplotlib.colors import LogNorm

from deepjax import analysis, create_model
from deepjax.analysis import TRAIN
from deepjax.analysis.plots import COLORS, STYLE, plain_log_ticks
from deepjax.evaluation.trained.networks import load_trained
from deepjax.models.layers.scanned_blocks import stack_blocks

plt.style.use([STYLE, {"figure.dpi": 80}])

nets = {"plain": load_trained("plain44"), "residual": load_trained("resnet44")}
for kind, net in nets.items():
    training, test = net.final["train_error"], net.final["test_error"]
    print(f"{kind:8} training error {training:.1%}, test error {test:.1%}")

# %% [markdown]
# ## Layer by epoch
#
# Every run of `deepjax train` logs the norm of the gradient of each layer's kernel, at the first
# step and after every epoch. A trained network of deepjax keeps that log.

# %%
maps = {}
for kind, net in nets.items():
    rows = [row["gradient_norms"] for row in net.log if "gradient_norms" in row]
    maps[kind] = np.array([list(row.values())[:-1] for row in rows]).T  # without the classifier
figure, axes = plt.subplots(1, 2, figsize=(9.6, 4.4), sharey=True)
scale = LogNorm(min(m.min() for m in maps.values()), max(m.max() for m in maps.values()))
for ax, norms in zip(axes, maps.values(), strict=True):
    shown = ax.pcolormesh(norms, norm=scale, cmap="viridis")
    ax.set_xticks(np.arange(0, norms.shape[1], 2) + 0.5, ["start", *range(2, norms.shape[1], 2)])
    ax.set_xlabel("epoch")
    ax.grid(False)
axes[0].set(ylabel="layer, 1 is next to the input", title="Plain: explodes at the start")
axes[1].set_title("Residual: even from the start")
figure.colorbar(shown, ax=axes, label="norm of the gradient")
plt.show()


def input_over_output(norms):
    third = len(norms) // 3
    return np.median(norms[:third]) / np.median(norms[-third:])


for kind, norms in maps.items():
    start, end = input_over_output(norms[:, 0]), input_over_output(norms[:, -1])
    print(f"{kind:8} first third over last third of the layers: start {start:.1f}, end {end:.2f}")
assert input_over_output(maps["plain"][:, 0]) > 10
assert 0.1 < input_over_output(maps["plain"][:, -1]) < 10

# %% [markdown]
# The plain network starts with gradients that explode toward the input. After two epochs they
# neither vanish nor explode, in both networks. So the sizes of gradients do not explain the
# difference in error.

# %% [markdown]
# ## Every layer of one step
#
# `trace` runs one forward and one backward pass and has a row for every module. Here of the
# networks of 20 layers before the first step.

# %%
small = {"plain": load_trained("plain20"), "residual": load_trained("resnet20")}
batch = nets["plain"].batch(64)
start = {
    kind: analysis.init_variables(net.model, jax.random.key(100), batch["image"].shape)
    for kind, net in small.items()
}
reports = {kind: analysis.trace(net.model, start[kind], batch) for kind, net in small.items()}
print("\n".join(repr(reports["residual"]).splitlines()[:10]))

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8))
for kind, report in reports.items():
    rows = [r for r in report.rows() if r["layer"].endswith(("conv1", "conv2"))]
    norms = [r["gradient_norm"] for r in rows]
    axes[0].semilogy(range(1, 19), norms, "o-", ms=4, label=kind)
axes[0].set(
    xlabel="convolution", ylabel="norm of the gradient at its output", xticks=range(2, 19, 4)
)
axes[0].set_title("Both grow toward the input, the plain one's more")
plain_log_ticks(axes[0])
axes[0].legend()
rows = [r for r in reports["residual"].rows() if r["branch_ratio"] is not None]
ratios = np.array([r["branch_ratio"] for r in rows])
axes[1].plot(range(1, 10), ratios, "o-", color=COLORS[2], label="norm, branch over shortcut")
axes[1].plot(
    range(1, 10), [r["cosine"] for r in rows], "s--", color=COLORS[3], label="cosine of both"
)
axes[1].set(
    xlabel="residual block", ylim=(-0.5, 2.5), title="Branches are orthogonal to their shortcuts"
)
axes[1].legend()
plt.show()

# %% [markdown]
# A branch is about as large as its shortcut, and orthogonal to it. So a block does not replace the
# signal but adds to it, and the gradient passes through the shortcut unchanged.

# %% [markdown]
# ## Signals
#
# The variance of the channels after each block, at initialisation (Brock et al. 2021), in the
# networks of 20 layers.

# %%
figure, ax = plt.subplots(figsize=(7.4, 3.6))
growth = {}
for kind, net in small.items():
    signal = analysis.signal_propagation(net.model, start[kind], batch["image"])
    values = np.array([row["variance"] for row in signal.rows()])
    ax.plot(range(1, len(values) + 1), values, "o-", label=kind)
    growth[kind] = values[2] / values[0]
ax.set(xlabel="block", ylabel="channel variance", title="Shortcuts add variance within a stage")
ax.legend()
plt.show()
assert growth["residual"] > 1.5 > growth["plain"]

# %% [markdown]
# In a residual network the variance grows with every block, until a transition to the next stage
# normalises it. Each later block is then a smaller part of the sum.

# %% [markdown]
# ## Is the gradient of any use?
#
# A gradient that changes from one input to the next like noise has *shattered* (Balduzzi et al.
# 2017). The measurement: the gradient along a straight line from one image to another, and the
# correlation of gradients at points at a distance on that line. The networks have 44 layers,
# before training; `scan=True` builds the same function with equal blocks as one scanned block,
# which compiles faster.

# %%
scanned = {
    kind: create_model(f"cifar_{name}44", width=8, num_classes=10, scan=True)
    for kind, name in (("plain", "plain"), ("residual", "resnet"))
}
fresh = {
    kind: analysis.init_variables(model, jax.random.key(100), batch["image"].shape)
    for kind, model in scanned.items()
}
first, last = batch["image"][:2]
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
for ax, (kind, model) in zip(axes, scanned.items(), strict=True):
    line = analysis.gradient_line(model, fresh[kind], first, last, 128)
    next_point = float(line.autocorrelation[1])
    line.plot(ax, title=f"{kind}: correlation {next_point:.2f} at the next point")
    assert (next_point > 0.3) == (kind == "residual")
plt.show()

# %% [markdown]
# Without shortcuts, neighbouring points of the line have unrelated gradients. With them they agree
# in part, for a few points.

# %% [markdown]
# ## Do images agree?
#
# The variance of the gradients of single images over the squared norm of their mean, after
# training, with frozen batch statistics: far above 1, images disagree. Before training
# `noise_scale` says how large a batch has to be for noise and signal of a step to be equal
# (McCandlish et al. 2018).

# %%
after = {kind: stack_blocks(net.variables) for kind, net in nets.items()}
batches = [nets["residual"].batch(256, seed=seed) for seed in range(3)]
for kind, model in scanned.items():
    found = analysis.per_example_gradients(model, after[kind], nets[kind].batch(32)).summary()
    ratio = found["variance"] / found["mean gradient's norm"] ** 2
    noise = analysis.noise_scale(model, fresh[kind], batches, mode=TRAIN, small=32)
    print(f"{kind:8} trained: variance {ratio:.0f} times the squared mean")
    scale = f"{noise.scale:.0f} ± {noise.standard_error:.0f} images"
    known = np.isfinite(noise.standard_error)
    print(f"{kind:8} start: noise scale {scale if known else 'too large for 768 images to tell'}")

# %% [markdown]
# ## Short paths
#
# A residual network with n blocks is a sum over 2ⁿ paths (Veit et al. 2016). The gradient by the
# number of branches on a path, in the trained network of 44 layers with its 21 blocks.

# %%
net = nets["residual"]
paths = analysis.path_lengths(net.model, net.variables, net.batch(32), samples=4, chunk=4)
figure, ax = plt.subplots(figsize=(7.4, 3.6))
paths.plot(ax)
plt.show()
assert paths.mean_length < 9  # the mean over all paths is 10.5

# %% [markdown]
# The gradient comes by paths shorter than the average one. The network behaves as an ensemble of
# shallower ones, which are easier to optimise.

# %% [markdown]
# ## A network that is not ours
#
# No instrument knows a model of deepjax by name. A block of Flax's own attention, unmodified:


# %%
class Transformer(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4, deterministic=deterministic)(y, y)
        y = nn.Dense(256)(nn.LayerNorm()(x))
        return nn.Dense(10)((x + nn.Dense(64)(nn.gelu(y))).mean(axis=1))


tokens, labels = jax.random.normal(jax.random.key(1), (32, 20, 64)), jnp.arange(32) % 10
block = Transformer()
analysis.trace(block, jax.jit(block.init)(jax.random.key(0), tokens), (tokens, labels))
