"""Pilots: the learning rate of every arm, selected on seeds that are never judged."""
