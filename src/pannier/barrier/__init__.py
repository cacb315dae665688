"""The barrier: a container's sync calls wait in the kernel until their data is on every copy.

``pannier-runtime`` has the container's seccomp filter notify us of its sync calls. The listener's
descriptor comes over a unix socket (``arrivals``), is kept in systemd's file descriptor store over a
restart of the daemon (``keeping``), and is read in the event loop (``listener``). ``reach`` says which
volumes a call concerns, ``groups`` makes calls wait for a common :class:`~.calls.Strategy`, and
:class:`~.barrier.Barrier` puts the parts together.
"""
