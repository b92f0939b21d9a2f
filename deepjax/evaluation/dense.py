"""Dense evaluation: networks on full images of any shape.

Simonyan and Zisserman 2014, section 3.2; He et al. 2015, section 3.4. Equal up to rounding:
- VGG's fully connected layers slide over the last map as convolutions with the same weights: 7x7,
  1x1, 1x1. An image of 224 x 224 pixels has one place for them: the plain network. On a larger
  image the score of each place is that of the plain layers on the 7x7 window of the map there, and
  the class scores are the mean over places.
- The class scores of GoogLeNet, Inception-v3 and the ResNets are linear in the mean of the map, so
  the classifier at every place, followed by the mean, is the network itself, for any image size.

A place does not have the score of the 224 x 224 crop under it. The crop has zeros around it in
every layer; the place sees the image's own pixels, over a field of 404 pixels in VGG-16. Two images
that agree over a place's entire field, at the same offset modulo 32, have the same score there.
Images of several shapes share one program, in arrays that they do not fill (`layers.valid_region`);
the results equal those of each image alone.
"""

from typing import Any

from flax import linen as nn
from jax import Array

from deepjax.models.layers import valid_region

# sizes of arrays in each doubling of the longer side: one image fills 8/9 of its array, or more
SIZES_PER_DOUBLING = 8


def as_fully_convolutional(model: nn.Module) -> nn.Module:
    """The network for full images, with the same variables: VGG's head becomes convolutions."""
    return model.clone(head="conv") if hasattr(model, "head") else model


def needs_filled_arrays(model: nn.Module) -> bool:
    """Whether padding changes the result: group normalisation uses statistics of the full map."""
    # stochastic depth is around a network
    return getattr(getattr(model, "network", model), "norm", "none") == "group"


def apply_to_valid_region(model: nn.Module, variables: Any, images: Array, ends: Array) -> Array:
    """Logits of images that are smaller than their array: those of each image in its own shape.

    images: (batch, height, width, channels), with any values outside; ends: (batch, 2) int32,
    height and width of each image, three quarters of the array's or more -> (batch, classes).
    Raises InputError where this would not be exact (group normalisation).
    """
    with valid_region.valid_region(images.shape, ends):
        return model.apply(variables, images, train=False)  # pyright: ignore[reportReturnType]


def array_size(size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the array for an image: its longer side rounded up, 8 sizes per doubling.

    size: (width, height). The sizes are the shorter side times 1, 9/8, ..., 15/8, 2, 9/4, ...; so
    the number of shapes, each of which is compiled, grows with the logarithm of the longest aspect
    ratio.

    >>> array_size((341, 256)), array_size((500, 224))
    ((352, 256), (504, 224))
    """
    short, long = min(size), max(size)
    unit = short << ((long // short).bit_length() - 1)  # 8 steps
    steps = -(-long * SIZES_PER_DOUBLING // unit)
    longer = -(-steps * unit // SIZES_PER_DOUBLING)
    return (short, longer) if size[0] == short else (longer, short)
