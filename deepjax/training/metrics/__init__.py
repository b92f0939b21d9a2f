"""What a run logs: rows of metrics, throughput, probes, and why a step was bad."""
