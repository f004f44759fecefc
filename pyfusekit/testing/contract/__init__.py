"""What every filesystem promises, as classes of tests; a filesystem's test file is these classes and its fixtures.

    class MemfsFixtures(ContractFixtures):
        @pytest.fixture
        def supports_whiteout(self) -> Capability:
            return Refused(errno.EINVAL)

    class TestMemfsWrite(WriteContract, MemfsFixtures): ...

The fixture ``tree``, an empty directory behind some door, comes from pyfusekit/testing/plugin.py.
"""

from .attributes import AttrContract, StatfsContract, TimesContract
from .base import SUPPORTED, Capability, ContractFixtures, Refused, Supported
from .directories import DirectoryContract
from .links import LinkContract, SpecialFileContract, TmpfileContract
from .names import RenameFlagsContract, TreeContract
from .permissions import AclContract, PermissionContract
from .processes import ConcurrencyContract, LockContract
from .read import SEED, ReadContract
from .sparse import MmapContract, SparseContract
from .write import OpenFlagsContract, WriteContract
from .xattrs import XattrContract

__all__ = [
    "SEED",
    "SUPPORTED",
    "AclContract",
    "AttrContract",
    "Capability",
    "ConcurrencyContract",
    "ContractFixtures",
    "DirectoryContract",
    "LinkContract",
    "LockContract",
    "MmapContract",
    "OpenFlagsContract",
    "PermissionContract",
    "ReadContract",
    "Refused",
    "RenameFlagsContract",
    "SparseContract",
    "SpecialFileContract",
    "StatfsContract",
    "Supported",
    "TimesContract",
    "TmpfileContract",
    "TreeContract",
    "WriteContract",
    "XattrContract",
]
