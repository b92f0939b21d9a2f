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
# # Receptive fields
#
# Which pixels a unit can see, and which of them matter to it: of published networks, of stacks of
# random layers, and of a trained network. Takes about a minute on two CPU cores.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from jax import lax

from deepjax import analysis, create_model
from deepjax.analysis.plots import COLORS, STYLE
from deepjax.evaluation.trained.networks import load_trained
from deepjax.study.networks import Stack

plt.style.use([STYLE, {"figure.dpi": 80}])

# %% [markdown]
# ## In theory
#
# `layer_fields` traces a network and returns size, stride and centre of the receptive field of
# every layer. Nothing is computed. A field may extend beyond the image.

# %%
figure, ax = plt.subplots(figsize=(8, 4))
largest = {}
for name, color in (("vgg16", COLORS[0]), ("resnet50_v1", COLORS[1]), ("googlenet", COLORS[2])):
    fields = analysis.layer_fields(create_model(name), (224, 224, 3))
    sizes = np.array([row["size"][0] for row in fields.rows() if row["size"]])
    largest[name] = sizes.max()
    ax.plot(np.linspace(0, 1, len(sizes)), sizes, color=color, label=name)
ax.axhline(224, color="0.4", linestyle=":")
ax.text(0, 230, "side of the image", color="0.3")
ax.set(xlabel="layer, from the input (0) to the last map (1)", ylabel="receptive field (pixels)")
ax.set_title("The last units see more than the image, except in VGG-16")
ax.legend(loc="upper left", bbox_to_anchor=(0, 0.9))
plt.show()
print({name: int(size) for name, size in largest.items()})
assert largest["vgg16"] == 196 and largest["resnet50_v1"] == 483

# %% [markdown]
# 483 pixels of ResNet-50 are the published value (Araujo et al. 2019), and so are 196 of VGG-16's
# last convolution. GoogLeNet's line goes up and down because its branches have filters of 1, 3 and
# 5 pixels.
#
# The same for any function of images, here two dilated convolutions:


# %%
def dilated(images):
    kernel = jnp.ones((3, 3, 1, 1))
    axes = ("NHWC", "HWIO", "NHWC")
    for rate in (1, 4):
        images = lax.conv_general_dilated(
            images, kernel, (1, 1), "SAME", rhs_dilation=(rate, rate), dimension_numbers=axes
        )
    return images


found = analysis.receptive_fields(dilated, (32, 32, 1))
print(found)
assert found.size == (11, 11)  # 1 + 2 x 1 + 2 x 4

# %% [markdown]
# ## What matters: the effective field
#
# The gradient of the centre unit with respect to the input, a mean over noise images (Luo et al.
# 2016). For n layers of 3x3 the theoretical field grows as 2n + 1. The effective one is about a
# Gaussian whose standard deviation grows as √(2n/3), if the weights are random and nothing is
# nonlinear.

# %%
DEPTHS = (1, 2, 4, 8, 16)
noise = jax.random.normal(jax.random.key(1), (32, 37, 37, 1))
maps, widths = {}, {}
stack = Stack((3,) * DEPTHS[-1], width=16, norm=False)
variables = analysis.init_variables(stack, jax.random.key(0), noise.shape)
for depth in DEPTHS:
    field = analysis.effective_field(stack, variables, noise, layers=f"conv{depth}", power="square")
    maps[depth], widths[depth] = np.asarray(field.map), field.summary()["sigma"]

# %%
figure, axes = plt.subplots(1, len(DEPTHS), figsize=(11, 2.7))
for ax, (depth, values) in zip(axes, maps.items(), strict=True):
    ax.imshow(np.sqrt(values / values.max()), cmap="viridis", vmin=0, vmax=1)
    edge = 18 - depth - 0.5
    box = plt.Rectangle((edge, edge), 2 * depth + 1, 2 * depth + 1, fill=False, color="white")
    ax.add_patch(box)
    ax.set(title=f"{depth} layer{'s' * (depth > 1)}", xticks=[], yticks=[])
    ax.grid(False)
figure.suptitle("Influence on the centre unit; the square is the theoretical field", fontsize=11)
plt.show()

# %%
figure, ax = plt.subplots(figsize=(6.4, 3.8))
n = np.array(DEPTHS)
ax.loglog(n, (2 * n + 1) / np.sqrt(12), "s--", color=COLORS[1], label="theoretical, 2n + 1")
ax.loglog(n, list(widths.values()), "o-", color=COLORS[0], label="effective, ReLU, measured")
ax.loglog(n, np.sqrt(2 * n / 3), ":", color="0.3", label="√(2n/3), linear layers")
ax.set_xticks(DEPTHS, DEPTHS)
ax.set_yticks([1, 2, 5, 10], [1, 2, 5, 10])
ax.minorticks_off()
slope = np.polyfit(np.log(n), np.log(list(widths.values())), 1)[0]
ax.set(xlabel="layers n", ylabel="standard deviation (pixels)")
ax.set_title(f"The effective field grows as n to the {slope:.2f}, not as n")
ax.legend()
plt.show()
assert 0.35 < slope < 0.65

# %% [markdown]
# With depth a unit uses an ever smaller part of what it could see. (The standard deviation of the
# theoretical field is that of equal weights within the square.)
#
# ## After training
#
# The residual network of 20 layers before and after twelve epochs on Fashion-MNIST, at the unit in
# the centre of the first stage's last map, on 128 test images.

# %%
net = load_trained("resnet20")
images = net.batch(128, "test")["image"]
before = analysis.init_variables(net.model, jax.random.key(100), images.shape)
figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.9))
sigma = {}
for ax, (moment, variables) in zip(
    axes, {"before training": before, "trained": net.variables}.items(), strict=True
):
    field = analysis.effective_field(net.model, variables, images, layers="stage1_block3")
    sigma[moment] = field.summary()["sigma"]
    ax.imshow(np.asarray(field.map) / np.asarray(field.map).max(), cmap="viridis", vmin=0, vmax=1)
    ax.set(title=f"{moment}: std {sigma[moment]:.2f} pixels", xticks=[], yticks=[])
    ax.grid(False)
plt.show()
print(f"theoretical field {field.theoretical[0]} pixels, images of 14")
change = "wider" if sigma["trained"] > sigma["before training"] else "narrower"
print(f"training made the field {change}")

# %% [markdown]
# Luo et al. report that training widens the field. One network with one seed decides nothing; the
# study `receptive_field` measures it over seeds (docs/results/README.md).
