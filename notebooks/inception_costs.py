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
# # What Inception modules cost
#
# Parameters and multiply-adds of GoogLeNet's module, with and without its 1x1 bottlenecks, counted
# from the traced computation; and the seconds that they take. Takes under a minute on two CPU
# cores.

# %%
import time

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from flax import linen as nn

from deepjax import analysis, create_model
from deepjax.analysis.plots import COLORS, STYLE

plt.style.use([STYLE, {"figure.dpi": 80}])

# %% [markdown]
# ## The slide's module
#
# 28x28 maps of 256 channels; filters as on the slide of CS231n (2017, lecture 9). `bottleneck`
# reduces the input of the 3x3 and 5x5 filters, and the pooled input, to 64 channels.


# %%
class Inception(nn.Module):
    bottleneck: bool

    @nn.compact
    def __call__(self, x):
        def conv(x, filters, size, name):
            return nn.relu(nn.Conv(filters, (size, size), name=name)(x))

        def reduced(x, name):
            return conv(x, 64, 1, f"reduce_{name}") if self.bottleneck else x

        pooled = nn.max_pool(x, (3, 3), padding="SAME")
        branches = (
            conv(x, 128, 1, "conv1x1"),
            conv(reduced(x, "3x3"), 192, 3, "conv3x3"),
            conv(reduced(x, "5x5"), 96, 5, "conv5x5"),
            reduced(pooled, "pool"),
        )
        return jnp.concatenate(branches, axis=-1)


modules = {"naive": Inception(False), "bottleneck": Inception(True)}
costs = {kind: analysis.cost(module, (28, 28, 256)) for kind, module in modules.items()}
for kind, cost in costs.items():
    total = cost.summary()
    print(f"{kind:10} {total['MACs']:>12,} multiply-adds, {total['params']:>9,} parameters")

# %%
LAYERS = ("reduce_3x3", "reduce_5x5", "reduce_pool", "conv1x1", "conv3x3", "conv5x5")
figure, ax = plt.subplots(figsize=(8.4, 3.8))
by_layer = {
    kind: {row["layer"]: row["macs"] / 1e6 for row in cost.rows()} for kind, cost in costs.items()
}
for shift, (kind, found) in zip((-0.2, 0.2), by_layer.items(), strict=True):
    values = [found.get(layer, 0) for layer in LAYERS]
    bars = ax.bar(
        np.arange(6) + shift, values, 0.4, label=kind, color=COLORS[0 if kind == "naive" else 1]
    )
    ax.bar_label(bars, [f"{value:.0f}" if value else "" for value in values], fontsize=9)
ax.set_xticks(range(6), LAYERS)
ratio = costs["naive"].summary()["MACs"] / costs["bottleneck"].summary()["MACs"]
ax.set(ylabel="million multiply-adds")
ax.set_title(f"The bottleneck saves a factor of {ratio:.2f}, most of it before the 5x5 filters")
ax.legend(loc="upper left")
plt.show()
assert costs["naive"].summary()["MACs"] == 854_196_224
assert costs["bottleneck"].summary()["MACs"] == 271_351_808

# %% [markdown]
# The naive module has 854 million multiply-adds, as the slide says. For the bottleneck the slide
# says 358 million. Its own terms add up to 271 million; adding the 3x3 term a second time gives
# 358:

# %%
terms = {layer: int(1e6 * value) for layer, value in by_layer["bottleneck"].items() if value}
once = 271_351_808
print(f"sum of the terms {once:,}; with the 3x3 term twice {once + 86_704_128:,}")
assert once + 86_704_128 == 358_055_936
assert round(by_layer["bottleneck"]["conv3x3"] * 1e6) == 86_704_128

# %% [markdown]
# ## Channels grow in a naive network
#
# A naive module concatenates its pooled input, so each module has more channels than the last.

# %%
nets = {
    "bottleneck": create_model("googlenet", auxiliary=False),
    "naive": create_model("googlenet_naive", auxiliary=False),
}
channels = {
    kind: [row.output_shape[-1] for row in analysis.stage_table(net, (224, 224, 3))]
    for kind, net in nets.items()
}
names = [row.name for row in analysis.stage_table(nets["naive"], (224, 224, 3))]
totals = {kind: analysis.cost(net, (224, 224, 3)).summary() for kind, net in nets.items()}

# %%
figure, ax = plt.subplots(figsize=(8.4, 3.8))
shown = [i for i, name in enumerate(names) if name != "head"]
for kind, color in (("naive", COLORS[0]), ("bottleneck", COLORS[1])):
    ax.plot([channels[kind][i] for i in shown], "o-", color=color, label=kind)
ax.set_xticks(range(len(shown)), [names[i].replace("inception", "") for i in shown])
ax.set(ylabel="channels", xlabel="module")
most = max(channels["naive"][i] for i in shown)
ax.set_title(f"Without bottlenecks the channels grow to {most:,}")
ax.legend()
plt.show()
for kind, total in totals.items():
    print(f"{kind:10} {total['MACs'] / 1e9:5.2f} G multiply-adds, {total['params'] / 1e6:5.1f} M")
assert totals["naive"]["MACs"] > 7 * totals["bottleneck"]["MACs"]

# %% [markdown]
# ## GoogLeNet, row by row
#
# The table that the paper prints (Szegedy et al. 2014, table 1): output, receptive field,
# parameters and multiply-adds of each stage.

# %%
print("stage        output        field   parameters   M multiply-adds")
for row in analysis.stage_table(nets["bottleneck"], (224, 224, 3)):
    output = "x".join(map(str, row.output_shape))
    size = row.receptive_field.size if row.receptive_field else None
    field = size[0] if size else "all"
    print(f"{row.name:12} {output:12} {field:>6} {row.params:>12,} {row.macs / 1e6:>13,.0f}")

# %% [markdown]
# ## Do multiply-adds predict seconds?
#
# One forward pass of each module, eight images, the median of five.


# %%
def milliseconds(module, x):
    variables = module.init(jax.random.key(0), x)
    run = jax.jit(module.apply)
    run(variables, x).block_until_ready()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        run(variables, x).block_until_ready()
        times.append(1000 * (time.perf_counter() - began))
    return float(np.median(times))


images = jax.random.normal(jax.random.key(0), (8, 28, 28, 256))
took = {kind: milliseconds(module, images) for kind, module in modules.items()}
for kind, value in took.items():
    print(f"{kind:10} {value:6.1f} ms")
slower = took["naive"] / took["bottleneck"]
print(f"naive: {slower:.1f} times the time, {ratio:.1f} times the multiply-adds")

# %% [markdown]
# Where both ratios are close, multiply-adds predict the time. They need not: small layers use a
# processor less well, and a pool has no multiply-adds but takes time. Whether a network with
# bottlenecks is as good as a naive one of equal cost is a question for a study: `inception_module`
# (docs/results/README.md).
