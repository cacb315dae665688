"""``pannier-runtime``: runc, with a barrier before the sync calls of containers of held volumes.

Neither file imports anything of Pannier: the script must start in a millisecond, and the edit of a
bundle in some ten.
"""
