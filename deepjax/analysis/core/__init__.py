"""How any network is called, intercepted and measured."""
