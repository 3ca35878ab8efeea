"""Which public samples a party asks about: the sample filter, its rewards and its cold start."""
