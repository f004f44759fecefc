"""For those who write filesystems: run yours without a kernel, and hold it to the same contract as the bundled ones.

    kernel     FakeKernel: the other end of /dev/fuse; no root, no mount
    doors      open_door: a Tree of POSIX verbs, behind the fake kernel or behind a real mount served by another process
    recipe     Recipe: names the filesystem to serve
    contract   ReadContract, WriteContract, ...: classes of tests (needs pytest)
    plugin     the doors as pytest fixtures
    tree       Tree: the verbs; native.NativeTree does them on any directory

Nothing is imported here, so that the process that serves a mount under test does not import what only tests need.
"""
