"""AlexNet's shift of colours on the device."""

import jax.numpy as jnp
from jax import Array, random

from deepjax.data.augment.basic import WHOLE, BatchSlice

# Of ImageNet's pixels from 0 to 1: red, green and blue of its three principal components, and their variances (eigenvalues of the
# covariance, by which section 4.1 multiplies), as fb.resnet.torch has them.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
EIGENVALUES = (0.2175, 0.0188, 0.0045)


def shift_colors(key: Array, images: Array, deviation: float, share: BatchSlice = WHOLE) -> Array:
    """Add to all pixels of an image one random colour along ImageNet's principal components.

    images: (batch, height, width, 3) floats from 0 to 255; deviation: 0.1 in Krizhevsky et al. 2012 (section 4.1).
    """
    amounts = (
        share.of(random.normal(key, (images.shape[0] * share.count, 3), jnp.float32)) * deviation
    )
    colors = (amounts * jnp.asarray(EIGENVALUES)[None, :]) @ jnp.asarray(COMPONENTS).T
    return images + 255.0 * colors[:, None, None, :].astype(images.dtype)
