"""The networks of tests/zoo/field.py with a batch, a loss, and their call by hand.

The call is what a user of Flax writes without deepjax, and what the instruments are compared with.
"""

import contextlib
import dataclasses
import functools
import zlib
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import nnx
from jax import Array

from deepjax.analysis import Network, cross_entropy, from_nnx
from tests.zoo.field import (
    ActorCritic,
    Burgers,
    Cnn,
    Decoder,
    Ensemble,
    Graph,
    GraphNetwork,
    NnxCnn,
    NnxSharedAndScanned,
    NnxVae,
    PixelCnn,
    Seq2Seq,
    SharedAndScanned,
    T5Encoder,
    UNet,
    Vae,
    burgers_loss,
    elbo_loss,
    ensemble_loss,
    logistic_loss,
)

EXAMPLES = 4
Act = Callable[[str, tuple[Any, ...], Any], Any]
"""(path of a layer, arguments of its call, output) -> what it returns instead."""


@dataclasses.dataclass(frozen=True, eq=False)
class FieldCase:
    """A network of the field and what its user knows about it."""

    name: str
    network: Any
    """What the instruments get: a module, or a Network."""
    variables: Any
    batch: Any
    shape: Any
    """Of the inputs, as `cost` gets it."""
    macs: int
    """Multiply-adds of the batch in `shape`, by hand."""
    layer: str
    """One that returns an array."""
    call: Callable[[Any, Any, bool, Array], Any]
    """(variables, batch, train, key) -> the outputs for the loss, by module.apply."""
    loss: Callable[[Any, Any], Array] = cross_entropy
    seen_in: str | None = None
    """The layer whose output shows a NaN of `layer`, if `layer`'s own cannot be read."""
    same_shape: str | None = None
    """A layer that keeps the shape of its input."""
    image_map: str | None = None
    """A layer that returns (batch, height, width, channels)."""
    field: int = 0
    """The pixels that a unit of `image_map` sees, in each direction."""
    kinds: dict[str, tuple[type, tuple[int, ...]]] = dataclasses.field(default_factory=dict)
    """Of an NNX module's layers above: their class and the shape of their kernel."""


def stream(key: Array, name: str) -> Array:
    """The key of a random stream, as the instruments promise it."""
    return key if name == "dropout" else jax.random.fold_in(key, zlib.crc32(name.encode()))


@contextlib.contextmanager
def intercepted(case: FieldCase, act: Act) -> Iterator[None]:
    """A context in which `act` is called at the end of every layer's call."""
    if case.kinds:
        with contextlib.ExitStack() as stack:
            for kind in {kind for kind, _ in case.kinds.values()}:
                call = _patched(case, kind, act)
                stack.enter_context(mock.patch.object(kind, "__call__", call))
            yield
        return

    def intercept(function: Any, arguments: Any, keywords: Any, context: Any) -> Any:
        output = function(*arguments, **keywords)
        if context.method_name != "__call__":
            return output
        return act("/".join(context.module.path), arguments, output)

    with nn.intercept_methods(intercept):
        yield


def _patched(case: FieldCase, kind: type, act: Act) -> Callable[..., Any]:
    original = kind.__call__
    names = {shape: name for name, (of, shape) in case.kinds.items() if of is kind}

    def call(module: Any, *arguments: Any, **keywords: Any) -> Any:
        output = original(module, *arguments, **keywords)
        shape = module.kernel.shape if hasattr(module, "kernel") else ()
        return act(names[shape], arguments, output) if shape in names else output

    return call


def _images(*shape: int) -> Array:
    return jnp.asarray(np.random.default_rng(0).normal(size=(EXAMPLES, *shape)), jnp.float32)


def _integers(high: int, *shape: int, seed: int = 1) -> Array:
    return jnp.asarray(np.random.default_rng(seed).integers(0, high, shape), jnp.int32)


def _one_hot(*shape: int, seed: int) -> Array:
    return jax.nn.one_hot(_integers(4, *shape, seed=seed), 4, dtype=jnp.float32)


def _shape_of(tree: Any) -> Any:
    return jax.eval_shape(lambda: tree)


def _init(module: nn.Module, *inputs: Any, **kwargs: Any) -> Any:
    keys = {name: jax.random.key(i) for i, name in enumerate(("params", "latent", "lstm"))}
    return jax.jit(lambda: dict(module.init(keys, *inputs, **kwargs)))()


def _cnn() -> FieldCase:
    module, x = Cnn(), _images(6, 6, 2)
    variables = _init(module, x, train=False)
    # Other statistics than 0 and 1, which would hide a confusion of the modes.
    variables["batch_stats"] = jax.tree.map(lambda leaf: leaf + 0.3, variables["batch_stats"])

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        if not train:
            return module.apply(variables, batch[0], train=False)
        rngs, mutable = {"dropout": key}, ["batch_stats"]
        return module.apply(variables, batch[0], train=True, rngs=rngs, mutable=mutable)[0]

    batch = (x, _integers(3, EXAMPLES))
    layers: dict[str, Any] = {"same_shape": "BatchNorm_0"}
    numbers = ((6, 6, 2), 1791, "Conv_1", call)
    return FieldCase(
        "cnn", module, variables, batch, *numbers, **layers, image_map="Conv_1", field=8
    )


def _vae() -> FieldCase:
    module, x = Vae(), _images(3, 3, 1)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, batch["image"], rngs={"latent": stream(key, "latent")})

    numbers = ((3, 3, 1), 96, "decoder/layers_0", call)
    options: dict[str, Any] = {"loss": elbo_loss}
    return FieldCase("vae", module, _init(module, x), {"image": x}, *numbers, **options)


def _seq2seq() -> FieldCase:
    module = Seq2Seq()
    inputs = _one_hot(EXAMPLES, 3, seed=2), _one_hot(EXAMPLES, 4, seed=3)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, *batch[0], rngs={"lstm": stream(key, "lstm")})[0]

    batch, network = (inputs, _integers(4, EXAMPLES, 3)), Network(module, output=0)
    shape, variables = ((3, 4), (4, 4)), _init(module, *inputs)
    layers = {"same_shape": "bridge"}
    return FieldCase("seq2seq", network, variables, batch, shape, 316, "bridge", call, **layers)


def _decoder() -> FieldCase:
    module, tokens = Decoder(), _integers(5, EXAMPLES, 4)
    variables = _init(module, tokens)
    for place in range(2):  # two tokens are in the cache
        one = tokens[:, place : place + 1]
        variables |= module.apply(variables, one, mutable=["cache"])[1]

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, batch[0], mutable=["cache"])[0]

    batch = (tokens[:, 2:3], tokens[:, 3:])
    shape = _shape_of(batch[0])
    layers = {"same_shape": "block0"}
    return FieldCase("decoder", module, variables, batch, shape, 592, "block0/up", call, **layers)


def _t5() -> FieldCase:
    module, tokens = T5Encoder(), _integers(6, EXAMPLES, 3)
    variables = _init(module, tokens, enable_dropout=False)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, batch[0], enable_dropout=train, rngs={"dropout": key})

    batch, shape = (tokens, _integers(6, EXAMPLES, 3, seed=4)), _shape_of(tokens)
    layers = {"same_shape": "final_norm"}
    return FieldCase("t5", module, variables, batch, shape, 1920, "wi_0", call, **layers)


def _graph() -> FieldCase:
    module = GraphNetwork()
    rng = np.random.default_rng(5)
    nodes, edges = rng.normal(size=(6, 2)), rng.normal(size=(9, 1))
    ends = [_integers(6, 9, seed=seed) for seed in (6, 7)]
    graph = Graph(jnp.asarray(nodes, jnp.float32), jnp.asarray(edges, jnp.float32), *ends)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, batch[0]).nodes

    network, batch = Network(module, output="nodes"), (graph, _integers(3, 6))
    shape, variables, layers = _shape_of(graph), _init(module, graph), {"same_shape": "head"}
    return FieldCase("graph", network, variables, batch, shape, 576, "message1", call, **layers)


def _plain(
    name: str, module: nn.Module, batch: Any, shape: Any, macs: int, layer: str, **options: Any
) -> FieldCase:
    """A network without mode, streams and state."""
    inputs = batch["image"] if isinstance(batch, dict) else batch[0]
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        inputs = batch["image"] if isinstance(batch, dict) else batch[0]
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return module.apply(variables, *inputs)

    variables = {"params": _init(module, *inputs)["params"]}
    return FieldCase(name, module, variables, batch, shape, macs, layer, call, **options)


def _unet() -> FieldCase:
    batch = (_images(8, 8, 1), _integers(2, EXAMPLES, 8, 8))
    layers: dict[str, Any] = {"same_shape": "norm", "image_map": "middle"}
    return _plain("unet", UNet(), batch, (8, 8, 1), 3008, "middle", **layers, field=8)


def _pixelcnn() -> FieldCase:
    batch = {"image": jnp.tanh(_images(5, 5, 1))}
    options: dict[str, Any] = {"seen_in": "inner_norm", "image_map": "inner", "field": 5}
    numbers = (batch, (5, 5, 1), 2450, "inner")
    return _plain("pixelcnn", PixelCnn(), *numbers, loss=logistic_loss, **options)


def _actor_critic() -> FieldCase:
    module = ActorCritic()
    pixels = np.random.default_rng(8).integers(0, 256, (EXAMPLES, 8, 8, 2))
    observations = jnp.asarray(pixels, jnp.uint8)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, batch[0])[0]

    batch, network = (observations, _integers(3, EXAMPLES)), Network(module, output=0)
    shape, variables = jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.uint8), _init(module, observations)
    layers: dict[str, Any] = {"image_map": "conv", "field": 4}
    numbers = (shape, 664, "hidden", call)
    return FieldCase("actor_critic", network, variables, batch, *numbers, **layers)


def _shared() -> FieldCase:
    module, x = SharedAndScanned(), _images(3)

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        return module.apply(variables, batch[0], deterministic=not train, rngs={"dropout": key})

    batch = (x, _integers(2, EXAMPLES))
    numbers = ((3,), 42, "head", call)
    variables = _init(module, x)
    return FieldCase("shared", module, variables, batch, *numbers, same_shape="mix")


def _ensemble() -> FieldCase:
    batch = (_images(3), _integers(3, EXAMPLES))
    options: dict[str, Any] = {"loss": ensemble_loss, "seen_in": "", "same_shape": "members"}
    return _plain("ensemble", Ensemble(), batch, (3,), 48, "members", **options)


def _burgers() -> FieldCase:
    x, t = np.random.default_rng(9).uniform(-1, 1, (2, EXAMPLES))
    x, t = jnp.asarray(x, jnp.float32), jnp.asarray(t, jnp.float32)
    shape = _shape_of((x, t))
    batch, macs = ((x, t), jnp.sin(3 * x)), EXAMPLES * 228
    options: dict[str, Any] = {"loss": burgers_loss, "same_shape": "solution"}
    return _plain("burgers", Burgers(), batch, shape, macs, "solution/first", **options)


def _nnx(name: str, module: nnx.Module, batch: Any, *numbers: Any, **options: Any) -> FieldCase:
    graph, state = nnx.split(module)
    kinds = {nnx.Param: "params", nnx.BatchStat: "batch_stats"}

    def call(variables: Any, batch: Any, train: bool, key: Array) -> Any:
        flat = {}
        for path, each in nnx.to_flat_state(state):
            names = tuple(map(str, path))
            if isinstance(each, nnx.RngKey):
                of_path = zlib.crc32("/".join(names[:-1]).encode())
                value = jax.random.fold_in(stream(key, each.tag), of_path)
            elif isinstance(each, nnx.RngCount):
                value = jnp.zeros((), jnp.uint32)
            else:
                tree = variables[kinds[type(each)]]
                value = functools.reduce(lambda tree, name: tree[name], names, tree)
            flat[path] = each.replace(value)
        new = nnx.merge(graph, nnx.from_flat_state(flat))
        (new.train if train else new.eval)()
        return new(batch["image"] if isinstance(batch, dict) else batch[0])

    network, variables = from_nnx(module)
    return FieldCase(name, network, variables, batch, *numbers, call, **options)


def _nnx_cnn() -> FieldCase:
    module = NnxCnn(nnx.Rngs(0))
    module.norm.mean[...] = module.norm.mean[...] + 0.3
    batch = (_images(6, 6, 2), _integers(3, EXAMPLES))
    kinds: dict[str, Any] = {
        "conv2": (nnx.Conv, (3, 3, 2, 3)),
        "norm": (nnx.BatchNorm, ()),
    }
    layers: dict[str, Any] = {"same_shape": "norm", "image_map": "conv2"}
    numbers = ((6, 6, 2), 1791, "conv2")
    return _nnx("nnx_cnn", module, batch, *numbers, **layers, field=8, kinds=kinds)


def _nnx_vae() -> FieldCase:
    batch, module = {"image": _images(3, 3, 1)}, NnxVae(nnx.Rngs(0, latent=1))
    kinds: dict[str, Any] = {"decoder/0": (nnx.Linear, (2, 4))}
    options: dict[str, Any] = {"loss": elbo_loss, "kinds": kinds}
    return _nnx("nnx_vae", module, batch, (3, 3, 1), 96, "decoder/0", **options)


def _nnx_shared() -> FieldCase:
    batch = (_images(3), _integers(2, EXAMPLES))
    options: dict[str, Any] = {"kinds": {"head": (nnx.Linear, (3, 2))}}
    module = NnxSharedAndScanned(nnx.Rngs(0))
    return _nnx("nnx_shared", module, batch, (3,), 42, "head", **options)


_MAKERS: dict[str, Callable[[], FieldCase]] = {
    "cnn": _cnn,
    "vae": _vae,
    "seq2seq": _seq2seq,
    "decoder": _decoder,
    "t5": _t5,
    "graph": _graph,
    "unet": _unet,
    "pixelcnn": _pixelcnn,
    "actor_critic": _actor_critic,
    "shared": _shared,
    "ensemble": _ensemble,
    "burgers": _burgers,
    "nnx_cnn": _nnx_cnn,
    "nnx_vae": _nnx_vae,
    "nnx_shared": _nnx_shared,
}
FIELD = tuple(_MAKERS)
"""Names of the cases."""


@functools.cache
def field_case(name: str) -> FieldCase:
    """The case, with variables from fixed keys."""
    return _MAKERS[name]()
