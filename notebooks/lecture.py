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
# # The lecture "Deep Into Deep", slide by slide
#
# Each slide's claim, computed on the spot or measured on small trained networks that are part of
# deepjax. Takes under three minutes on two CPU cores, without a download.
#
# The networks were trained on 16,000 photographs of clothes (Fashion-MNIST at 14x14 pixels) for a
# few epochs, with one seed: they show an effect. Whether a claim holds over seeds, with intervals
# and controls, is in the results of the studies (docs/results/README.md).

# %% [markdown]
# **In Google Colab** the next cell installs deepjax by pip from a wheel. The project has no public
# address yet: build the wheel with `pip wheel --no-deps -w dist .` in a clone, and upload it with
# the panel *Files*. Elsewhere the cell does nothing.

# %%
import subprocess
import sys
from pathlib import Path

if "google.colab" in sys.modules:
    wheels = sorted(Path("/content").glob("deepjax-*.whl"))
    if not wheels:
        raise SystemExit("upload the wheel of deepjax with the panel Files, then run this again")
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", wheels[-1]], check=True)

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from flax import linen as nn

from deepjax import analysis, create_model
from deepjax.analysis.plots import COLORS, STYLE
from deepjax.evaluation.trained.networks import load_trained
from deepjax.study.networks import SmallImageGoogLeNet

plt.style.use([STYLE, {"figure.dpi": 80}])

# %% [markdown]
# ## ImageNet's winners
#
# Published top-5 errors of the winning entries. Most are ensembles, so the chart is not one of
# single networks; layers are as the lecture charts them.

# %%
WINNERS = [  # year, entry, top-5 error in per cent, layers
    (2012, "AlexNet", 16.4, 8),
    (2013, "Clarifai", 11.7, 8),
    (2014, "GoogLeNet", 6.67, 22),
    (2015, "ResNet", 3.57, 152),
    (2016, "Trimps-Soushen", 2.99, 152),
    (2017, "SENet", 2.25, 152),
]
years, _, errors, _ = zip(*WINNERS, strict=True)
assert list(errors) == sorted(errors, reverse=True)

figure, ax = plt.subplots(figsize=(8.4, 3.8))
bars = ax.bar(range(len(years)), errors, color=COLORS[0], width=0.6)
ax.bar_label(bars, fmt="%g", fontsize=9)
ax.axhline(5.1, color=COLORS[1], linestyle="--")
ax.text(5.45, 5.4, "one trained person: 5.1", color=COLORS[1], ha="right")
labels = [f"{year}\n{name}\n{depth} layers" for year, name, _, depth in WINNERS]
ax.set_xticks(range(len(years)), labels)
ax.set(ylabel="top-5 error (%)", title="Errors fell every year, mostly with depth")
plt.show()

# %% [markdown]
# Every year has a lower error, and the largest drop in relative terms came with 152 layers. Depth
# did not grow in 2013, nor after 2015, and the error fell nevertheless.

# %% [markdown]
# ## VGG: three 3x3 filters instead of one 7x7
#
# The claim: same receptive field, fewer parameters, more nonlinearities. For C channels in and out
# three layers have 3 (3 x 3 x C x C) = 27 C² weights, and one has 49 C².


# %%
def conv_stack(*kernels, channels=64):
    convs = [nn.Conv(channels, (k, k), use_bias=False, padding="SAME") for k in kernels]
    return nn.Sequential([each for conv in convs for each in (conv, nn.relu)])


stacks = {"three 3x3": conv_stack(3, 3, 3), "one 7x7": conv_stack(7)}
for name, stack in stacks.items():
    weights = analysis.count_params(stack, (28, 28, 64))
    field = analysis.layer_fields(stack, (28, 28, 64)).rows()[-1]["size"]
    print(f"{name:9}  {weights / 64**2:.0f} C² weights, receptive field {field[0]}x{field[1]}")
    assert tuple(field) == (7, 7)
assert analysis.count_params(stacks["three 3x3"], (28, 28, 64)) == 27 * 64**2
assert analysis.count_params(stacks["one 7x7"], (28, 28, 64)) == 49 * 64**2

# %% [markdown]
# The claim is exact: 45 % fewer weights for the same receptive field.
#
# ## What a unit really uses
#
# A theoretical receptive field says which pixels may matter. The gradient of a unit with respect to
# the input says how much they do: the *effective* receptive field (Luo et al. 2016), here of random
# networks.

# %%
noise = jax.random.normal(jax.random.key(1), (32, 28, 28, 64))
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.8))
width = {}
for ax, (name, stack) in zip(axes, stacks.items(), strict=True):
    variables = analysis.init_variables(stack, jax.random.key(0), (1, 28, 28, 64))
    field = analysis.effective_field(stack, variables, noise)
    width[name] = field.summary()["sigma"]
    shown = np.asarray(field.map)[9:20, 9:20]
    ax.imshow(shown / shown.max(), cmap="viridis", vmin=0, vmax=1, extent=(-5.5, 5.5, -5.5, 5.5))
    ax.grid(False)
    ax.set(title=f"{name}: std {width[name]:.2f} pixels", xlabel="pixels from the unit")
plt.show()
assert width["three 3x3"] < width["one 7x7"]

# %% [markdown]
# Both cover 7x7 pixels. The stack concentrates on the centre, because more paths lead there; the
# single filter weighs all pixels alike. So both are equal in theory only.

# %% [markdown]
# ## VGG-16: where parameters and multiply-adds are

# %%
vgg = analysis.cost(create_model("vgg16"), (224, 224, 3))
rows = [row for row in vgg.rows() if row["macs"]]
figure, ax = plt.subplots(figsize=(9, 3.8))
x = np.arange(len(rows))
for shift, key, label in ((-0.2, "params", "parameters"), (0.2, "macs", "multiply-adds")):
    values = np.array([row[key] for row in rows], float)
    ax.bar(x + shift, 100 * values / values.sum(), 0.4, label=label, color=COLORS[shift > 0])
ax.set_xticks(x, [row["layer"] for row in rows], rotation=60, ha="right", fontsize=9)
of_head = sum(row["params"] for row in rows if row["layer"].startswith("head"))
fraction = of_head / vgg.summary()["params"]
ax.set(ylabel="% of the network", title=f"The three last layers have {fraction:.0%} of the weights")
ax.legend(loc="upper left")
plt.show()
assert vgg.summary()["params"] == 138_357_544 and fraction > 0.85

# %% [markdown]
# 138 million parameters, nearly all of them in fully connected layers, which have almost none of
# the 15.5 billion multiply-adds. GoogLeNet and ResNet replace these layers by an average pool.

# %% [markdown]
# ## GoogLeNet: the bottleneck of the Inception module
#
# The slide's module has 28x28 maps of 256 channels. A naive one applies 5x5 filters to all 256; the
# bottleneck first reduces them to 64 by 1x1 filters.


# %%
class Inception(nn.Module):
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        def conv(x, filters, size):
            return nn.Conv(filters, (size, size))(x)

        def reduced(x):
            return conv(x, 64, 1) if self.bottleneck else x

        pooled = nn.max_pool(x, (3, 3), padding="SAME")
        branches = conv(x, 128, 1), conv(reduced(x), 192, 3), conv(reduced(x), 96, 5)
        return jnp.concatenate([*branches, reduced(pooled)], axis=-1)


macs = {kind: analysis.count_macs(Inception(kind), (28, 28, 256)) for kind in (False, True)}
print(f"naive {macs[False]:,}, bottleneck {macs[True]:,} multiply-adds")
print(f"{macs[False] / macs[True]:.2f} times fewer")
assert macs == {False: 854_196_224, True: 271_351_808}

# %% [markdown]
# The naive module has the slide's 854 million multiply-adds. The bottleneck has 271 million: the
# often quoted 358 million counts the 3x3 branch twice (`inception_costs.ipynb`).
#
# The complete network, without its auxiliary heads:

# %%
googlenet = analysis.count_params(create_model("googlenet", auxiliary=False), (224, 224, 3))
ALEXNET = 60_965_224  # Krizhevsky et al. 2012, with two groups
print(f"GoogLeNet {googlenet / 1e6:.2f} million parameters")
print(f"AlexNet has {ALEXNET / googlenet:.1f} times, VGG-16 {138_357_544 / googlenet:.1f} times")
assert 8 < ALEXNET / googlenet < 9

# %% [markdown]
# The lecture's "12 times fewer than AlexNet" is the paper's sentence; counting gives 8.7.

# %% [markdown]
# ## GoogLeNet: auxiliary classifiers
#
# Two heads classify from inner layers, and their losses are added with weight 0.3. The claim: they
# inject gradient at lower layers. Here a GoogLeNet of 22 layers and width 8, trained with heads.
# One function has a weight for each loss as argument, so that it compiles once.

# %%
heads = load_trained("googlenet_heads", make=SmallImageGoogLeNet)
few = heads.batch(64)


@jax.jit
def gradient(params, weights):
    def loss(params):
        logits, sown = heads.model.apply(
            {"params": params}, few["image"], train=False, mutable=["auxiliary"]
        )
        inner = [sown["auxiliary"][name] for name in ("4a", "4d")]
        return weights @ jnp.stack([analysis.cross_entropy(out, few) for out in (logits, *inner)])

    return jax.grad(loss)(params)


STAGES = ["stem_conv1", "stem_conv2", "inception3a", "inception3b", "inception4a", "inception4b",
          "inception4c", "inception4d", "inception4e", "inception5a", "inception5b"]  # fmt: skip
norms = []
for i, weight in enumerate((1.0, 0.3, 0.3)):
    found = gradient(heads.variables["params"], weight * jnp.eye(3)[i])
    norms.append([float(optax.global_norm(found[stage])) for stage in STAGES])
fractions = np.array(norms) / np.sum(norms, axis=0)

# %%
figure, ax = plt.subplots(figsize=(8.4, 3.6))
bottom = np.zeros(len(STAGES))
LOSSES = ("main loss", "head on 4a", "head on 4d")
for label, part, color in zip(LOSSES, fractions, COLORS, strict=False):
    ax.bar(range(len(STAGES)), 100 * part, 0.7, bottom=100 * bottom, label=label, color=color)
    bottom += part
low = 1 - fractions[0, :5]
ax.set_xticks(
    range(len(STAGES)),
    [s.replace("inception", "").replace("stem_", "") for s in STAGES],
    fontsize=9,
)
ax.set(ylim=(0, 100), ylabel="% of the gradient's norm")
ax.set_title(f"Below both heads {low.min():.0%} to {low.max():.0%} of the gradient is theirs")
ax.legend(loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()
assert low.min() > 0.1 and np.all(fractions[0, -3:] == 1)

# %% [markdown]
# The heads do feed the layers below them, and no layer above. That does not say that they help:
# the study of eight seeds finds no certain gain (`auxiliary_heads.ipynb`).

# %% [markdown]
# ## Degradation: deeper and worse
#
# He et al. 2015, on a small scale: plain and residual networks of 20 and 44 layers with equal
# parameters. If depth overfitted, the deeper network would be *better* on its training images.

# %%
nets = {name: load_trained(name) for name in ("plain20", "plain44", "resnet20", "resnet44")}
for name, net in nets.items():
    test = net.batch(4000, "test")
    logits = jax.jit(lambda v, x, m=net.model: m.apply(v, x, train=False))(
        net.variables, test["image"]
    )
    error = float(analysis.error_rate(logits, test))
    assert abs(error - net.final["test_error"]) < 0.001, "not the recorded error"
    print(f"{name:8}  training error {net.final['train_error']:6.2%}, test error {error:6.2%}")

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
for ax, kind in zip(axes, ("plain", "resnet"), strict=True):
    for depth, color in ((20, COLORS[0]), (44, COLORS[1])):
        rows = [row for row in nets[f"{kind}{depth}"].log if row["kind"] == "epoch"]
        epochs = [row["epoch"] for row in rows]
        of = [100 * row["running_error"] for row in rows]
        ax.plot(epochs, of, "--", color=color, label=f"{depth} layers, training")
        of = [100 * row["test_error"] for row in rows]
        ax.plot(epochs, of, color=color, label=f"{depth} layers, test")
    ax.set(xlabel="epoch", ylim=(0, 65))
    ax.legend()
axes[0].set(title="Plain: 44 layers are worse than 20", ylabel="error (%)")
axes[1].set(title="Residual: 44 layers are as good as 20")
plt.show()
train = {name: net.final["train_error"] for name, net in nets.items()}
assert train["plain44"] > train["plain20"] + 0.02
assert abs(train["resnet44"] - train["resnet20"]) < 0.02

# %% [markdown]
# The plain network of 44 layers is worse on training images too, so it does not overfit: it is
# harder to optimise. The residual one is not.

# %% [markdown]
# ## The residual mapping
#
# ### It is not that gradients vanish
#
# The runs logged the norm of the gradient in every layer at the first step and after every epoch.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.8), sharey=True)
ratios = {}
for ax, name in zip(axes, ("plain44", "resnet44"), strict=True):
    logged = [row for row in nets[name].log if "gradient_norms" in row]
    for row, label, color in ((logged[0], "first step", COLORS[0]), (logged[-1], "end", COLORS[1])):
        norms = np.array(list(row["gradient_norms"].values())[:-1])
        ax.semilogy(np.arange(1, len(norms) + 1), norms, "o-", ms=3, label=label, color=color)
        third = len(norms) // 3
        ratios[name, label] = np.median(norms[:third]) / np.median(norms[-third:])
    ax.set_xlabel("layer, from the input")
    ax.legend()
axes[0].set(ylabel="norm of the gradient", title="Plain, 44 layers: larger near the input at first")
axes[1].set_title("Residual, 44 layers: even from the start")
plt.show()
for (name, moment), ratio in ratios.items():
    print(f"{name:8} {moment:10}: first third of the layers has {ratio:5.2f} times the last's")
assert ratios["plain44", "first step"] > 10 > ratios["resnet44", "first step"]
assert 0.1 < ratios["plain44", "end"] < 10

# %% [markdown]
# Gradients of the plain network *explode* toward the input at the first step (with batch norm they
# do, Yang et al. 2019), and at the end they neither vanish nor explode. Vanishing gradients do not
# explain its degradation, as He et al. say.
#
# ### Blocks add to a signal
#
# Without one block, nothing retrained (Veit et al. 2016): 512 test images.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9.6, 3.6), sharey=True)
some, rises = nets["plain20"].batch(512, "test"), {}
for ax, name in zip(axes, ("plain20", "resnet20"), strict=True):
    blocks = {"layers": "stage?_block?"} if name == "plain20" else {}
    found = analysis.lesions(nets[name].model, nets[name].variables, some, **blocks)
    rises[name] = [100 * block.error_change for block in found.blocks]
    ax.bar(range(len(found.blocks)), rises[name], color=COLORS[0])
    names = [block.removed[0].removesuffix("/sum") for block in found.blocks]
    ax.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=9)
    ax.set_title(f"{name}: {np.median(rises[name]):.1f} points in the median")
axes[0].set_ylabel("rise of the error (points)")
plt.show()
assert np.median(rises["resnet20"]) < 10 < np.median(rises["plain20"])

# %% [markdown]
# A plain network without one of its blocks guesses (blocks that change the shape of the map cannot
# be bypassed). A residual network loses a few points: each block adds a correction to a signal that
# the shortcuts keep.

# %% [markdown]
# ## Read on
#
# - Each subject has a notebook: `receptive_fields`, `inception_costs`, `gradients`,
#   `auxiliary_heads`, `landscape`, `reading_a_run`, `nnx`.
# - Verdicts over seeds on every claim of the lecture: docs/results/README.md.
