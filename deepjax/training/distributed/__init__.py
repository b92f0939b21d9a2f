"""Devices and processes: sharding, collectives, and how processes join."""
