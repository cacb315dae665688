"""The journal of a node: records of all volumes of which it has copies, until a generation has what they have.

``layout`` and ``format`` are the file as bytes, ``recovery`` judges what a file that is opened holds, ``index`` is what is live, ``room`` says how
much may be: these are pure. ``file`` is the disk, ``writing`` puts frames there, and ``journal`` is what others use.
"""
