"""The barrier: a container's sync calls wait in the kernel until their data is on every copy.

``pannier-runtime`` has the container's seccomp filter notify us of its sync calls. The listener's
descriptor arrives over a unix socket (``arrivals``), survives a restart of the daemon in systemd's
file descriptor store (``keeping``), and is read in the event loop (``listener``). ``reach`` says which
volumes a call concerns, ``groups`` lets calls wait together for a :class:`~.calls.Strategy`, which has
``local_sync`` bring their files to this node's disk, and :class:`~.barrier.Barrier` puts the parts together.
"""
