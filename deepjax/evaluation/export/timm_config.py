"""config.json of an exported folder, by which timm makes the network and loads its weights."""

import json
import math

from deepjax.evaluation.export.metadata import Metadata
from deepjax.models.weights.torch_names import TorchLayout

TIMM_FILE = "config.json"


def timm_config(about: Metadata, names: TorchLayout) -> str:
    """The text of config.json for `timm.create_model("local-dir:FOLDER", pretrained=True)`.

    names: timm's of the network. The format is that of timm's hub (timm 1.0, models/_hub.py).
    """
    height, width, channels = about.input_shape
    mean, std = about.mean_and_std
    last = "head_fc8" if about.network.startswith("vgg") else "head"
    preprocessing = {
        "input_size": [channels, height, width],
        "fixed_input_size": False,
        "interpolation": about.interpolation,
        "crop_pct": _crop_fraction(about.crop, about.shorter_side or about.crop),
        "crop_mode": "center",
        "mean": mean,
        "std": std,
        "num_classes": about.dataset.num_classes,
        "first_conv": names.names(names.stem),
        "classifier": names.names(last),
        "license": about.licence,
    }
    config = {
        "architecture": about.twins["timm"],
        "num_classes": about.dataset.num_classes,
        "label_names": list(about.dataset.label_names),
        "pretrained_cfg": preprocessing,
    }
    if channels != 3:
        config["model_args"] = {"in_chans": channels}
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _crop_fraction(crop: int, side: int) -> float:
    """Crop / side, from which timm's floor(crop / fraction) gives the side again."""
    fraction = crop / side
    return fraction if math.floor(crop / fraction) == side else math.nextafter(fraction, 0)
