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
# # Loss landscape and Hessian
#
# The loss around a plain and a residual network of 44 layers: on planes, on lines, and by the
# eigenvalues of the Hessian. Takes about two minutes on two CPU cores.
#
# Both networks were trained on Fashion-MNIST at 14x14 pixels for twelve epochs. `scan=True` builds
# the same function with equal blocks as one scanned block, which compiles in the time of a shallow
# network; `stack_blocks` converts the variables.

# %%
import jax
import matplotlib.pyplot as plt
import numpy as np

from deepjax import analysis, create_model
from deepjax.analysis import TRAIN
from deepjax.analysis.plots import COLORS, STYLE
from deepjax.evaluation.trained.networks import load_trained
from deepjax.models.layers.scanned_blocks import stack_blocks

plt.style.use([STYLE, {"figure.dpi": 80}])

nets = {"plain": load_trained("plain44"), "residual": load_trained("resnet44")}
models, before, after = {}, {}, {}
for kind, net in nets.items():
    registered = {"plain": "cifar_plain44", "residual": "cifar_resnet44"}[kind]
    models[kind] = create_model(registered, width=8, num_classes=10, scan=True)
    after[kind] = stack_blocks(net.variables)
    before[kind] = analysis.init_variables(models[kind], jax.random.key(100), (1, 14, 14, 1))
batch = nets["plain"].batch(64)
for kind, model in models.items():
    same = model.apply(after[kind], batch["image"]) - nets[kind].model.apply(
        nets[kind].variables, batch["image"]
    )
    assert float(abs(same).max()) < 1e-3  # the scanned network computes the same

# %% [markdown]
# ## On a plane
#
# Two random directions in which every filter has the norm of the network's own (Li et al. 2018), so
# that a step of 1 means the same in both networks. Batch norm uses the statistics of the batch. One
# colour scale for both planes.

# %%
AXIS = np.linspace(-1, 1, 13)
planes = {}
for kind, model in models.items():
    x, y = (analysis.random_direction(after[kind], jax.random.key(seed)) for seed in (0, 1))
    planes[kind] = analysis.loss_plane(
        model, after[kind], batch, x, y, grid=(AXIS, AXIS), chunk=13, mode=TRAIN
    )

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 4), sharey=True)
losses = {kind: np.asarray(plane.loss) for kind, plane in planes.items()}
every = np.stack(list(losses.values()))
levels = np.geomspace(every.min(), 1.01 * every.max(), 16)
for ax, (kind, values) in zip(axes, losses.items(), strict=True):
    drawn = ax.contourf(AXIS, AXIS, values, levels=levels, cmap="viridis", norm="log")
    ax.plot(0, 0, "*", color="white", ms=12)
    ax.set(
        title=f"{kind}: loss {values[6, 6]:.2f} at the centre",
        xlabel="direction 1",
        xticks=(-1, -0.5, 0, 0.5, 1),
    )
axes[0].set_ylabel("direction 2")
bar = figure.colorbar(drawn, ax=axes, label="loss")
ticks = [0.1, 0.2, 0.5, 1, 2, 5, 10]
bar.set_ticks(ticks, labels=ticks)
plt.show()
for kind, plane in planes.items():
    print(kind, {name: f"{value:.3g}" for name, value in plane.summary().items()})

# %% [markdown]
# At this size both planes are bowls: the residual network lies deeper, and neither is the chaos
# that Li et al. show for 56 and more layers. In the study of eight seeds the difference in
# convexity is inconclusive (`optimization` in docs/results/README.md).

# %% [markdown]
# ## On a line
#
# From the first step to the last: is there a barrier?

# %%
ALPHAS = np.linspace(0, 1, 21)
figure, ax = plt.subplots(figsize=(7.4, 3.6))
barriers = {}
for (kind, model), color in zip(models.items(), COLORS, strict=False):
    line = analysis.linear_interpolation(
        model, before[kind], after[kind], batch, alphas=ALPHAS, chunk=21, mode=TRAIN
    )
    barriers[kind] = float(line.barrier)
    ax.plot(ALPHAS, np.asarray(line.loss), "o-", ms=4, color=color, label=kind)
assert barriers["plain"] > 0.3 > barriers["residual"]
ax.set(xlabel="from the initial (0) to the trained network (1)", ylabel="loss")
ax.set_title(", ".join(f"barrier {value:.2f} ({kind})" for kind, value in barriers.items()))
ax.legend()
plt.show()

# %% [markdown]
# The barrier is how far the loss rises above the straight line between the losses of both ends. The
# residual network has none. The plain one crosses a plateau at the loss of guessing, log 10 = 2.3.

# %% [markdown]
# ## The Hessian
#
# Its eigenvalues, by products with vectors; no matrix is formed. First the largest by magnitude,
# each with a bound on its error:

# %%
tops = {}
for kind, model in models.items():
    tops[kind] = analysis.top_eigenvalues(model, after[kind], batch, 3, mode=TRAIN, steps=24)
    print(kind, np.round(tops[kind].values, 2), "within", np.round(tops[kind].residuals, 3))

# %% [markdown]
# Then the density of all of them, by Lanczos quadrature from one random vector (Ghorbani et al.
# 2019; a figure in a paper needs about 90 steps and ten vectors).

# %%
densities = {
    kind: analysis.spectral_density(model, after[kind], batch, mode=TRAIN, steps=24, probes=1)
    for kind, model in models.items()
}
figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True)
for ax, (kind, density) in zip(axes, densities.items(), strict=True):
    ends = density.lambda_min, density.lambda_max
    density.plot(ax, title=f"{kind}: from {ends[0]:.2f} to {ends[1]:.1f}")
plt.show()
for density in densities.values():
    assert density.lambda_min < 0 < density.lambda_max  # a saddle, as nearly everywhere
    assert abs(density.lambda_min) < density.lambda_max

# %% [markdown]
# Nearly all eigenvalues are close to zero, a few are large and positive, and the negative ones are
# smaller: flat in most directions, steep in a few.

# %% [markdown]
# ## How much of the gradient is in steep directions?
#
# The fraction of the squared gradient norm in the span of the ten top eigenvectors (Gur-Ari et al.
# 2018). Ten of 166,000 random directions would have 0.006 %.

# %%
for kind, model in models.items():
    overlap = analysis.gradient_subspace_overlap(
        model, after[kind], batch, 10, mode=TRAIN, steps=24
    )
    print(kind, {name: f"{value:.3g}" for name, value in overlap.summary().items()})
    fraction, of_random = list(overlap.summary().values())[:2]
    assert fraction > 100 * of_random

# %% [markdown]
# The gradient prefers the steep directions by a factor of more than a hundred.
