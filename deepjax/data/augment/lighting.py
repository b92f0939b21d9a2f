"""AlexNet's PCA colour augmentation on the device."""

import jax.numpy as jnp
from jax import Array, random

from deepjax.data.augment.basic import FULL_BATCH, BatchSlice

# Of ImageNet's pixels from 0 to 1: red, green and blue of its three principal components, and their
# variances (eigenvalues of the covariance, by which section 4.1 multiplies), as fb.resnet.torch has
# them.
COMPONENTS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))
EIGENVALUES = (0.2175, 0.0188, 0.0045)


def shift_colors(
    key: Array, images: Array, std: float, batch_slice: BatchSlice = FULL_BATCH
) -> Array:
    """Add to all pixels of an image one random colour along ImageNet's principal components.

    images: (batch, height, width, 3) floats from 0 to 255; std: 0.1 in Krizhevsky et al. 2012
    (section 4.1).
    """
    amounts = (
        batch_slice.select(
            random.normal(key, (images.shape[0] * batch_slice.count, 3), jnp.float32)
        )
        * std
    )
    colors = (amounts * jnp.asarray(EIGENVALUES)[None, :]) @ jnp.asarray(COMPONENTS).T
    return images + 255.0 * colors[:, None, None, :].astype(images.dtype)
