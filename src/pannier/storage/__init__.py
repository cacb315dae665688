"""Where bytes live: the :class:`~pannier.storage.base.Driver` protocol and what implements it."""
