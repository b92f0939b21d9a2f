"""Test protocols of the papers: which views of an image a network sees, and what is averaged.

| protocol      | shorter side(s)         | views                                  | mean of       |
|---------------|-------------------------|----------------------------------------|---------------|
| 1-crop        | 256, or the weights'    | centre                                 |               |
| 10-crop       | 256                     | corners, centre of central square; M   | probabilities |
| 10-crop-whole | 256                     | corners, centre of the full image; M   | logits        |
| 144-crop      | 256, 288, 320, 352      | corners, centre, all of 3 squares; M   | probabilities |
| dense         | 256 (Q = S)             | full image; M                          | probabilities |
| multi-scale   | 224, 256, 288 (S +- 32) | full image; M                          | probabilities |
|  (not VGG)    | 224, 256, 384, 480, 640 | full image; M                          | probabilities |
| multi-crop    | 256, 384, 512           | a grid of 5x5 crops; M: 50 per scale   | probabilities |

M: and mirrored. Sources, in this order: torchvision; Krizhevsky et al. 2012, section 4.1;
fb.resnet.torch; Szegedy et al. 2014, section 7; Simonyan and Zisserman 2014, sections 3.2 and 4.2;
He et al. 2015, section 3.4; Simonyan and Zisserman 2014, section 4.3.

Sides are for crops of 224 pixels, and in proportion for others. Over the places of a dense map the
mean is of logits (VGG, 3.2: the score map is "spatially averaged"); over mirrors, scales and crops
it is of softmax outputs where the paper says so. ResNet's "average the scores at multiple scales"
and "standard 10-crop testing" (Krizhevsky's) are read as softmax outputs too. Mirrors are those of
the crops, as in Krizhevsky; torchvision's TenCrop mirrors the image, whose centre then is one pixel
off where width minus crop is odd.
"""

import dataclasses
from typing import Literal

from deepjax.errors import require, unknown_name_error
from deepjax.evaluation.crops import Cut

Average = Literal["probabilities", "logits"]
PAPER_CROP = 224  # pixels of the crops for which the papers give their shorter sides


@dataclasses.dataclass(frozen=True)
class Protocol:
    """Views of one kind at several scales; `sides`: shorter sides in pixels, for crops of 224."""

    name: str
    cut: Cut
    sides: tuple[int, ...]
    mirror: bool
    average: Average
    source: str

    def __post_init__(self) -> None:
        require(
            len(self.sides) >= 1 and min(self.sides) >= 1,
            "sides",
            self.sides,
            "at least one size of 1 pixel or more",
        )

    @property
    def dense(self) -> bool:
        """Whether the network sees full images, in their own shapes."""
        return self.cut == "whole"

    @property
    def views(self) -> int:
        """Number of views of an image, over all scales and mirrors."""
        pieces = {
            "centre": 1,
            "corners": 5,
            "square corners": 5,
            "squares": 18,
            "grid": 25,
            "whole": 1,
        }[self.cut]
        return pieces * len(self.sides) * (1 + self.mirror)

    def for_crops(self, crop: int) -> "Protocol":
        """The protocol for another crop size: sides in proportion, rounded, at least the crop."""
        return dataclasses.replace(
            self, sides=tuple(max(crop, round(side * crop / PAPER_CROP)) for side in self.sides)
        )


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "1-crop",
            "centre",
            (256,),
            False,
            "probabilities",
            "torchvision; He et al. 2015, the authors' release",
        ),
        Protocol(
            "10-crop",
            "square corners",
            (256,),
            True,
            "probabilities",
            "Krizhevsky et al. 2012, section 4.1",
        ),
        Protocol(
            "10-crop-whole",
            "corners",
            (256,),
            True,
            "logits",
            "fb.resnet.torch; views as torchvision's TenCrop",
        ),
        Protocol(
            "144-crop",
            "squares",
            (256, 288, 320, 352),
            True,
            "probabilities",
            "Szegedy et al. 2014, section 7",
        ),
        Protocol(
            "dense",
            "whole",
            (256,),
            True,
            "probabilities",
            "Simonyan and Zisserman 2014, section 3.2",
        ),
        Protocol(
            "multi-scale",
            "whole",
            (224, 256, 288),
            True,
            "probabilities",
            "Simonyan and Zisserman 2014, section 4.2",
        ),
        Protocol(
            "multi-crop",
            "grid",
            (256, 384, 512),
            True,
            "probabilities",
            "Simonyan and Zisserman 2014, section 4.3",
        ),
    )
}
RESNET_SIDES = (224, 256, 384, 480, 640)


def resolve_protocol(
    name: str,
    model: str,
    crop: int,
    resize: int = 0,
    sides: tuple[int, ...] = (),
    average: Average | None = None,
) -> Protocol:
    """The protocol of that name for a network and a crop size; its sides are in pixels.

    resize: shorter side of an image from which the weights expect a single crop; sides, average:
    instead of the paper's. Raises InputError for an unknown name, and for sides below the crop.
    """
    if name not in PROTOCOLS:
        raise unknown_name_error("protocol", name, PROTOCOLS)
    protocol = PROTOCOLS[name]
    if name == "multi-scale" and not model.startswith("vgg"):
        protocol = dataclasses.replace(
            protocol, sides=RESNET_SIDES, source="He et al. 2015, section 3.4"
        )
    chosen = sides or ((resize,) if name == "1-crop" and resize else protocol.for_crops(crop).sides)
    given = ("resize", resize) if chosen == (resize,) and not sides else ("sides", chosen)
    require(min(chosen) >= crop, *given, f"{crop} (the crop) or more")
    return dataclasses.replace(protocol, sides=chosen, average=average or protocol.average)
