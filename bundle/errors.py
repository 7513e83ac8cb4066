"""Every way in which a bundle, a schema or a value can be wrong.

Refused (the root of other packages' errors too)
└── BundleError
    ├── SchemaInvalid            a feature schema does not parse or contradicts itself
    │   └── SchemaNotFitted      an encoding lacks what training should have stored in it
    ├── ValueInvalid             a feature's values cannot be encoded
    │   ├── UnknownFeature       a name that the schema does not hold
    │   ├── WrongType            values of another type than the schema declares
    │   ├── NotFinite            NaN or infinity in a numeric feature
    │   └── WrongLength          a column with another number of rows than its neighbours
    ├── ManifestMissing          no manifest.json in the folder
    ├── ManifestInvalid          manifest.json does not parse, or contradicts itself
    ├── ManifestVersion          written by another version of the contract
    ├── SignatureInvalid         manifest.sig does not read, or signs something else
    │   ├── SignatureMissing     no manifest.sig, where trusted keys are wanted
    │   └── SignatureUntrusted   signed, but by no trusted key
    ├── KeyInvalid               a file of keys does not read, or holds another kind of key
    ├── FileMissing              listed in the manifest, not in the folder
    ├── FileNotListed            in the folder, not in the manifest
    ├── FileUnsafe               a link, a non-file, or a path that leaves the folder
    ├── FileSize                 another size than the manifest lists
    ├── FileDigest               another sha256 than the manifest lists
    ├── GoldenInvalid            golden.npz does not read, or does not fit the manifest
    ├── TensorMismatch           the graph's inputs or outputs are not the manifest's
    ├── GoldenMismatch           the loaded model does not reproduce the golden outputs
    └── ItemsInvalid             the item table is not what the manifest says
        ├── ItemIdInvalid        an item id that is empty, too long, or stands twice
        ├── ItemFileInvalid      a file of it does not read, or holds another dtype or shape
        ├── ItemIndexInvalid     its index points beyond its rows, or misses an item
        └── ItemRowsMismatch     its rows are not what the bundle's encoder makes of the same features

A message gives the thing, the value found and the value expected.
"""

from __future__ import annotations


class Refused(Exception):
    """Something is not what it must be; the message gives the thing, the value found and the value expected.

    The root of the errors of every package that may import this one.
    """

    exit_code = 2

    def __init__(self, thing: str, *, found: object, expected: object) -> None:
        """Build the message `<thing>: got <found>, want <expected>`."""
        self.thing = thing
        self.found = found
        self.expected = expected
        super().__init__(f"{thing}: got {found}, want {expected}")


class BundleError(Refused):
    """A bundle, feature schema or feature value is not what the contract says."""


class SchemaInvalid(BundleError):
    """A feature schema does not parse or contradicts itself."""


class SchemaNotFitted(SchemaInvalid):
    """An encoding lacks what training should have stored in it."""


class ValueInvalid(BundleError):
    """A feature's values cannot be encoded."""


class UnknownFeature(ValueInvalid):
    """A feature name that the schema does not hold."""


class WrongType(ValueInvalid):
    """Values of another type than the schema declares."""


class NotFinite(ValueInvalid):
    """NaN or infinity in a numeric feature."""


class WrongLength(ValueInvalid):
    """A column with another number of rows than its neighbours."""


class ManifestMissing(BundleError):
    """No manifest.json in the folder."""


class ManifestInvalid(BundleError):
    """manifest.json does not parse, or contradicts itself."""


class ManifestVersion(BundleError):
    """The manifest was written by another version of the contract."""


class SignatureInvalid(BundleError):
    """manifest.sig does not read, or a trusted key has signed something else."""


class SignatureMissing(SignatureInvalid):
    """There is no manifest.sig, where trusted keys are wanted."""


class SignatureUntrusted(SignatureInvalid):
    """The manifest is signed, but by no trusted key."""


class KeyInvalid(BundleError):
    """A file of keys does not read, or holds another kind of key."""


class FileMissing(BundleError):
    """A file listed in the manifest is not in the folder."""


class FileNotListed(BundleError):
    """A file in the folder is not listed in the manifest."""


class FileUnsafe(BundleError):
    """A link, a non-file, or a path that leaves the folder."""


class FileSize(BundleError):
    """A file has another size than the manifest lists."""


class FileDigest(BundleError):
    """A file has another sha256 than the manifest lists."""


class GoldenInvalid(BundleError):
    """golden.npz does not read, or does not fit the manifest."""


class TensorMismatch(BundleError):
    """The graph's inputs or outputs are not those that the manifest names."""


class GoldenMismatch(BundleError):
    """The loaded model does not reproduce the golden outputs within the tolerance."""


class ItemsInvalid(BundleError):
    """The item table is not what the manifest says."""


class ItemIdInvalid(ItemsInvalid):
    """An item id is empty, too long, or stands twice."""


class ItemFileInvalid(ItemsInvalid):
    """A file of the item table does not read, or holds another dtype or shape."""


class ItemIndexInvalid(ItemsInvalid):
    """The item index points beyond the rows, or misses an item."""


class ItemRowsMismatch(ItemsInvalid):
    """The table's rows are not what the bundle's encoder makes of the same features."""
