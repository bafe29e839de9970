#!/usr/bin/env python3
"""Checks that each smt_… and grpc_server_… metric an alert or a dashboard names is one that the server defines."""
import pathlib
import re
import sys

SOURCES = pathlib.Path("server/metrics")


def main():
    defined = set()
    for path in SOURCES.rglob("*.cc"):
        defined |= set(re.findall(r'"((?:smt|grpc_server)_[a-z0-9_]+)"', path.read_text()))
    bad = 0
    for folder in sys.argv[1:]:
        for path in sorted(p for p in pathlib.Path(folder).rglob("*") if p.suffix in (".yaml", ".yml", ".json")):
            for name in sorted(set(re.findall(r"\b(?:smt_|grpc_server_)[a-z0-9_]+", path.read_text()))):
                if not {name, re.sub(r"_(bucket|sum|count)$", "", name)} & defined:
                    print(f"{path}: {name} is no metric of the server")
                    bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
