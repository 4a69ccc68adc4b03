"""Values as JSON and back: what JSON knows as it is, everything else under a tag that names its type.

    {"agentguard:PosixPath": "/srv/a.db"}                          a value of the standard library
    {"agentguard:object": "shop.Order", "fields": {"number": 4}}    an object of a class with fields
    {"agentguard:exact": ...}                                       a payload whose tags are to be read

`plain` says what needs no tag, `kinds` and `objects` know the types, `packing` and `unpacking` walk over
a value, `sameness` compares two of them, and `fingerprint` tells apart what cannot be stored.
"""
