"""How any linen module is initialised, run, validated and intercepted."""
