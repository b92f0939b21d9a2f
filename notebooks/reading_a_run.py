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
# # Reading a run
#
# Train a small network, and read everything that its run directory says: curves, gradients, probes,
# checkpoints, the images that it misclassifies. Takes about a minute on two CPU cores.

# %%
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.ticker import NullFormatter

from deepjax import analysis
from deepjax.analysis.plots import COLORS, STYLE
from deepjax.training import RunOptions, open_run, train, train_config

plt.style.use([STYLE, {"figure.dpi": 80}])
os.chdir(tempfile.mkdtemp())  # the run goes to a temporary folder


def deepjax(*arguments):
    """The command `deepjax` with these arguments."""
    command = [sys.executable, "-m", "deepjax", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    print(done.stdout.rstrip().replace(f"{os.getcwd()}/", ""))


# %% [markdown]
# ## The run
#
# The same as `deepjax train --model cifar_resnet20 --model-args stages=[1,1,1] --width 8 ...` in a
# terminal: 1,437 images of handwritten digits, twelve epochs, a checkpoint every 48 steps and a
# probe of all layers every 12.

# %%
config = train_config(
    "cifar_resnet20",
    "digits",
    model_args=("stages=[1,1,1]",),
    width=8,
    epochs=12,
    batch_size=120,
    learning_rate=0.1,
    augment=False,
    seed=1,
)
options = RunOptions(save_every=48, keep_last=3, probe_every=12, probe="layers")
result = train(config, "runs/digits", options, say=lambda line: None)
print(f"training error {result.train_error:.1%}, test error {result.test_error:.1%}")
for path in sorted(Path("runs/digits").iterdir()):
    print(path.name)

# %% [markdown]
# The same command resumes an interrupted run, bitwise. A finished one says that it is done, and
# another configuration in the same directory is refused:

# %%
again = train(config, "runs/digits", options, say=lambda line: None)
assert again.was_done and again.test_error == result.test_error
try:
    train(train_config("cifar_resnet20", "digits", seed=2), "runs/digits")
except Exception as error:
    print(f"{type(error).__name__}: {str(error).replace(os.getcwd(), '.')[:120]} ...")

# %% [markdown]
# ## In a terminal
#
# `deepjax runs show` prints options that are not the defaults, the last epochs and the checkpoints;
# `verify` hashes every file and reads every array.

# %%
deepjax("runs", "show", "runs/digits")
deepjax("runs", "verify", "runs/digits")

# %% [markdown]
# ## Curves
#
# `metrics.jsonl` has one JSON object a line; its `kind` says what it is.

# %%
run = open_run("runs/digits")
rows = run.metrics()
kinds = {kind: sum(row["kind"] == kind for row in rows) for kind in {row["kind"] for row in rows}}
print(dict(sorted(kinds.items())))
epochs = [row for row in rows if row["kind"] == "epoch"]
print(json.dumps({k: v for k, v in epochs[-1].items() if k != "gradient_norms"}, indent=1))

# %%
figure, axes = plt.subplots(1, 3, figsize=(11, 3.3))
x = [row["epoch"] for row in epochs]
axes[0].plot(x, [100 * row["running_error"] for row in epochs], "--", label="training, running")
axes[0].plot(x, [100 * row["test_error"] for row in epochs], label="test")
axes[0].set(title=f"Test error {result.test_error:.1%} at the end", ylabel="error (%)")
axes[1].plot(x, [row["running_loss"] for row in epochs], "--", label="training, running")
axes[1].plot(x, [row["test_loss"] for row in epochs], label="test")
axes[1].set(title="Training loss goes to zero", ylabel="loss")
axes[2].plot(x, [row["learning_rate"] for row in epochs], color=COLORS[2])
axes[2].set(title="Learning rate: a cosine")
for ax in axes:
    ax.set(xlabel="epoch", ylim=(0, None))
for ax in axes[:2]:
    ax.legend()
plt.show()
assert result.test_error < 0.1

# %% [markdown]
# The training error is a running mean over the epoch, with the parameters of each step; so it is
# behind in the first epochs.
#
# ## Gradients
#
# Every epoch logs the norm of each layer's gradient, and every probe a row for each layer with the
# ratio of update to weight, which says whether the learning rate fits.

# %%
norms = np.array([list(row["gradient_norms"].values()) for row in epochs])
layers = list(epochs[0]["gradient_norms"])
probes = [row for row in rows if row["kind"] == "trace"]
figure, axes = plt.subplots(1, 2, figsize=(10.4, 4))
for at, color in zip((0, 5, -1), COLORS, strict=False):
    axes[0].semilogy(norms[at], "o-", ms=4, color=color, label=f"epoch {epochs[at]['epoch']:g}")
    measured = [probes[at]["layers"][layer]["update_ratio"] for layer in layers]
    axes[1].semilogy(measured, "o-", ms=4, color=color, label=f"step {probes[at]['step']}")
axes[0].set(title="Gradients shrink as images are fitted", ylabel="norm of the gradient")
axes[1].set(title="Updates shrink with the learning rate", ylabel="norm, update over weights")
for ax in axes:
    ax.set_xticks(range(len(layers)), layers, rotation=60, ha="right", fontsize=9)
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.legend()
plt.show()

# %% [markdown]
# No layer stands out, and the updates are near 0.002 of the weights until the cosine schedule
# lowers the learning rate. A common rule of thumb is a ratio of 0.001 to 0.01.
#
# ## Checkpoints
#
# `open_run` opens any checkpoint that the run keeps. The test error along the way:

# %%
test = run.batch(360, "test")
for step in run.steps:
    at = open_run("runs/digits", step=step)
    logits = jax.jit(lambda v, x, m=at.model: m.apply(v, x, train=False))(
        at.variables, test["image"]
    )
    error = analysis.error_rate(logits, test)
    print(f"step {step:3}: test error {float(error):.1%}")
assert abs(float(error) - result.test_error) < 1e-6  # of the last one, as the run says

# %% [markdown]
# ## What it gets wrong
#
# The test images with the highest loss, as "digit as prediction", and all confusions.

# %%
losses = -np.asarray(jax.nn.log_softmax(logits))[np.arange(360), np.asarray(test["label"])]
predicted = np.asarray(logits).argmax(-1)
worst = np.argsort(-losses)[:8]
figure, axes = plt.subplots(1, 8, figsize=(11, 1.9))
for ax, i in zip(axes, worst, strict=True):
    ax.imshow(np.asarray(test["image"][i, ..., 0]), cmap="gray_r")
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{int(test['label'][i])} as {predicted[i]}", fontsize=10)
    ax.grid(False)
plt.show()

# %%
confusion = np.zeros((10, 10), int)
np.add.at(confusion, (np.asarray(test["label"]), predicted), 1)
assert np.trace(confusion) == round(360 * (1 - result.test_error))
figure, ax = plt.subplots(figsize=(4.6, 4.2))
mistakes = confusion - np.diag(np.diag(confusion))
ax.imshow(mistakes, cmap="Oranges", vmax=2 * max(1, mistakes.max()))
for row, column in zip(*np.nonzero(confusion), strict=True):
    ax.text(column, row, confusion[row, column], ha="center", va="center", fontsize=9)
ax.set(xticks=range(10), yticks=range(10), xlabel="predicted", ylabel="digit")
ax.set_title(f"{mistakes.sum()} mistakes in 360 images")
ax.grid(False)
plt.show()

# %% [markdown]
# ## A page
#
# `deepjax report runs/digits` writes all of this as one page of HTML, and `deepjax runs compare`
# compares several runs. An instrument takes a run as it takes any network:

# %%
analysis.trace(run.model, run.variables, run.batch(120), layers=["stem*", "stage?_block1", "head"])
