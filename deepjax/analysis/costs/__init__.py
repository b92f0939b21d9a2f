"""Parameters, multiply-adds, memory and bytes moved."""
