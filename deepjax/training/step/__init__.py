"""The pure part of training: state, preprocessing, losses, optimizers, guard and step."""
