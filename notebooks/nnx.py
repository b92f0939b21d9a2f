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
# # An NNX network, trained and analysed
#
# A small residual network is written and trained in plain Flax NNX, on 1,797 real images of
# handwritten digits. Nothing in it knows of `deepjax.analysis`. `from_nnx` then gives the
# instruments what they take: a network, and its variables before and after training.
#
# The notebook runs from top to bottom in under two minutes on two CPU cores, without a download.

# %%
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import nnx

from deepjax import analysis
from deepjax.analysis import TRAIN, from_nnx
from deepjax.analysis.plots import STYLE
from deepjax.data import dataset_info, sample

plt.style.use([STYLE, {"figure.dpi": 80}])


# %% [markdown]
# ## The network
#
# Six residual blocks. One convention helps: a module whose call takes `(shortcut, branch)` is a
# residual sum, which some instruments show separately.


# %%
class Sum(nnx.Module):
    def __call__(self, shortcut, branch):
        return shortcut + branch


class Block(nnx.Module):
    def __init__(self, width, rngs):
        self.conv1 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm1 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.conv2 = nnx.Conv(width, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm2 = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.sum = Sum()

    def __call__(self, x):
        branch = self.norm2(self.conv2(nnx.relu(self.norm1(self.conv1(x)))))
        return nnx.relu(self.sum(x, branch))


class Net(nnx.Module):
    def __init__(self, rngs, width=12, blocks=6):
        self.stem = nnx.Conv(1, width, (3, 3), use_bias=False, rngs=rngs)
        self.norm = nnx.BatchNorm(width, momentum=0.9, rngs=rngs)
        self.blocks = nnx.List([Block(width, rngs) for _ in range(blocks)])
        self.dropout = nnx.Dropout(0.1, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images):
        x = nnx.relu(self.norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(self.dropout(x.mean((1, 2))))


# %% [markdown]
# ## Training
#
# The usual loop: `nnx.Optimizer`, `nnx.jit`, twelve epochs. At the start and after each epoch
# `from_nnx` returns the variables as nested dicts of arrays. The networks that it returns are
# equal, so nothing is compiled again.

# %%
digits = dataset_info("digits")
data = sample(digits, 1280)
test = sample(digits, 360, split="test")
net = Net(nnx.Rngs(0))
optimizer = nnx.Optimizer(net, optax.adam(optax.cosine_decay_schedule(0.01, 120)), wrt=nnx.Param)


@nnx.jit
def step(net, optimizer, batch):
    def loss(net):
        return analysis.cross_entropy(net(batch["image"]), batch)

    value, gradients = nnx.value_and_grad(loss)(net)
    optimizer.update(net, gradients)
    return value


network, before = from_nnx(net)
history = [before]
net.train()
for epoch in range(12):
    for order in np.random.default_rng(epoch).permutation(1280).reshape(10, 128):
        value = step(net, optimizer, {name: array[order] for name, array in data.items()})
    history.append(from_nnx(net)[1])
after = history[-1]

net.eval()
error = analysis.error_rate(net(test["image"]), test)
print(f"last training loss {value:.3f}, test error {100 * error:.1f} %")
batch = {name: array[:128] for name, array in data.items()}
moments = {"before": before, "after": after}

# %% [markdown]
# ## Statistics of every layer
#
# `trace` runs one forward and one backward pass and has a row for every module, by its path in the
# parameters. Indices of lists are names: `blocks/0/conv1`.

# %%
analysis.trace(network, before, batch, layers=["stem", "norm", "blocks/0/**", "head"])

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True)
for ax, (moment, variables) in zip(axes, moments.items(), strict=True):
    report = analysis.trace(network, variables, batch)
    report.plot(ax, title=f"{moment} training, loss {report.loss:.2g}")
    ax.tick_params(axis="x", labelsize=9)
plt.show()

# %% [markdown]
# Training has made all gradients about ten times smaller: this batch is fitted. How much has each
# block changed what it computes? Linear CKA compares the outputs of the same block at both
# moments; 1 is the same representation up to a rotation and a scale.

# %%
blocks = {"layers": "blocks/?", "other_layers": "blocks/?"}
change = analysis.cka(network, before, test, other=(network, after), **blocks)
for layer, similarity in zip(change.layers, change.similarity.diagonal(), strict=True):
    print(f"{layer}  {similarity:.2f}")

# %% [markdown]
# ## Which batch size?
#
# The noise scale (McCandlish et al. 2018) is the batch size at which noise and signal of a gradient
# are equal. It grows in training, as the signal gets weaker; so does the largest useful batch.

# %%
batches = [{name: array[i::5] for name, array in data.items()} for i in range(5)]
for epoch in (0, 1, 2, 4):
    noise = analysis.noise_scale(network, history[epoch], batches, mode=TRAIN, small=16)
    print(
        f"after epoch {epoch}: noise scale {noise.scale:.0f} images "
        f"(standard error {noise.standard_error:.1f})"
    )

# %% [markdown]
# ## Curvature
#
# The Hessian's largest eigenvalues by Lanczos' method, each with a bound on its error, and the
# density of all of them.

# %%
for moment, variables in moments.items():
    print(f"{moment} training")
    print(analysis.top_eigenvalues(network, variables, batch, 3, mode=TRAIN, steps=24))

# %%
figure, axes = plt.subplots(1, 2, figsize=(11, 3.6))
for ax, (moment, variables) in zip(axes, moments.items(), strict=True):
    density = analysis.spectral_density(network, variables, batch, mode=TRAIN, steps=24, probes=1)
    ends = f"from {density.lambda_min:.1f} to {density.lambda_max:.1f}"
    density.plot(ax, title=f"{moment} training: eigenvalues {ends}")
plt.show()

# %% [markdown]
# ## The loss around the path of training
#
# The plane of the two principal directions of the path (Li et al. 2018). A random walk also appears
# to lie in a plane; the result states how much of its variance that would be.

# %%
path = analysis.trajectory(history)
plane = analysis.loss_plane(
    network,
    after,
    batch,
    *path.directions,
    path=path,
    grid=path.grid(21),
    chunk=21,
    mode=TRAIN,
)
plane.plot()
plt.show()
print(
    f"{path.plane_variance_ratio:.0%} of the path's variance is in this plane; "
    f"of a random walk's it would be {path.random_walk_ratio:.0%}"
)

# %% [markdown]
# ## Without a block
#
# Removing one residual branch after training, without any further training (Veit et al. 2016).

# %%
analysis.lesions(network, after, test).plot()
plt.show()

# %% [markdown]
# ## Which pixels?
#
# Grad-CAM shows the places of a layer that speak for the predicted class; integrated gradients
# attribute the score to the pixels, red for the class, blue against it. Their sum is the difference
# of the score from that of a black image.

# %%
six = {name: array[:6] for name, array in test.items()}
figure, axes = plt.subplots(2, 1, figsize=(7, 6))
analysis.grad_cam(network, after, six, "blocks/5").plot(axes[0])
parts = analysis.integrated_gradients(network, after, six, steps=64)
parts.plot(axes[1])
plt.show()
print(f"sums are within {parts.summary()['relative gap']:.1%} of the differences of scores")

# %% [markdown]
# ## Operators
#
# The Hessian, Gauss-Newton and Fisher matrices are linear operators: `A @ v`, `A.diagonal()`,
# `A.to_scipy()`. SciPy's eigenvalue solver takes them as they are; of the last layer alone the full
# matrix is small enough to compare.

# %%
from scipy.sparse.linalg import eigsh

matrix = analysis.fisher(network, before, batch, layers="head")
found = eigsh(matrix.to_scipy(), k=3, return_eigenvectors=False)
full = np.linalg.eigvalsh(matrix.todense())[-3:]
print(f"{matrix.shape[0]} parameters: {found.round(3)} by products, {full.round(3)} in full")
