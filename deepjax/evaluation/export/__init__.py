"""Export of a network: weights, StableHLO, metadata and a model card in one folder."""
