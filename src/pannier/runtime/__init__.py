"""``pannier-runtime``: runc, with a barrier before the sync calls of containers of held volumes.

Neither file imports other code of Pannier: the script must start within a millisecond, and the edit of
a bundle within some ten.
"""
