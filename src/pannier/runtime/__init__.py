"""``pannier-runtime``: runc, with a barrier before the sync calls of containers of held volumes.

Nothing here imports other code of Pannier, nor ``typing`` or ``dataclasses``: the script must start within a
millisecond, and the look at a bundle take some ten.
"""
