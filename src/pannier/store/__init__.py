"""The cluster's memory: the :class:`~pannier.store.base.Store` protocol and what implements it."""
