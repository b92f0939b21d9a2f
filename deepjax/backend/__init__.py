"""Properties of XLA, of JAX and of the machine; imports no other package of deepjax."""
