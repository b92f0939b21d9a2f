"""Options under the names of other programs, such as timm, torchvision and flax's examples."""

FAMILIAR_OPTIONS = {
    "--lr": "--learning-rate",
    "--base-lr": "--learning-rate",
    "--batch": "--batch-size",
    "--bs": "--batch-size",
    "-b": "--batch-size",
    "--arch": "--model",
    "--net": "--model",
    "--network": "--model",
    "--data": "--dataset",
    "--data-path": "--dataset",
    "--opt": "--optimizer",
    "--wd": "--weight-decay",
    "--sched": "--schedule",
    "--lr-scheduler": "--schedule",
    "--warmup": "--warmup-epochs",
    "--lr-warmup-epochs": "--warmup-epochs",
    "--smoothing": "--label-smoothing",
    "--bce-loss": "--loss sigmoid",
    "--clip-grad": "--grad-clip-norm",
    "--clip-grad-norm": "--grad-clip-norm",
    "--accumulation-steps": "--grad-accum-steps",
    "--amp": "--precision bfloat16",
    "--fp16": "--precision bfloat16",
    "--bf16": "--precision bfloat16",
    "--half-precision": "--precision bfloat16",
    "--dtype": "--precision",
    "--model-ema": "--ema-decay 0.9999",
    "--model-ema-decay": "--ema-decay",
    "--aa": "--auto-augment",
    "--reprob": "--random-erasing",
    "--img-size": "--image-size",
    "--train-crop-size": "--image-size",
    "--crop-pct": "--eval-crop",
    "--drop-path-rate": "--drop-path",
    "--pretrained": "--weights SOURCE",
    "--initial-checkpoint": "--weights",
    "--checkpoint": "--weights",
    "--workers": "--decode-threads",
    "--num-workers": "--decode-threads",
    "-j": "--decode-threads",
    "--output": "--output-dir",
    "--workdir": "--output-dir",
    "--logdir": "--output-dir",
    "--num-epochs": "--epochs",
    "--max-steps": "--steps",
    "--checkpoint-every": "--save-every",
    "--log-tensorboard": "--tensorboard",
    "--log-wandb": "--wandb",
    "--use-wandb": "--wandb",
    "--log-interval": "--log-every",
    "--print-freq": "--log-every",
}
"""The option here by the name there."""
FAMILIAR_REMEDIES = {
    "--resume": "the same command resumes a run from its newest checkpoint",
    "--auto-resume": "the same command resumes a run from its newest checkpoint",
    "--num-classes": "the number of classes follows from the data set",
    "--device": "JAX_PLATFORMS=cpu or CUDA_VISIBLE_DEVICES chooses devices; all of them are used",
    "--gpu": "CUDA_VISIBLE_DEVICES chooses devices; all of them are used",
    "--gpus": "CUDA_VISIBLE_DEVICES chooses devices; all of them are used",
    "--local-rank": "torchrun's variables are read; see docs/launch.md",
    "--dist-url": "see docs/launch.md, or --hosts.coordinator",
    "--wandb-project": "WANDB_PROJECT, WANDB_NAME and WANDB_ENTITY are read",
    "--pin-mem": "batches are always transferred ahead of their step",
}
"""What does the same here, where that is no option."""


def familiar_hint(flag: str) -> str:
    """What to use in place of an option of another program; "" where it is not known.

    >>> familiar_hint("--lr")
    'use --learning-rate'
    """
    if flag in FAMILIAR_OPTIONS:
        return f"use {FAMILIAR_OPTIONS[flag]}"
    return FAMILIAR_REMEDIES.get(flag, "")
