#!/usr/bin/env python3
"""Validates the objects of a YAML file against the published Kubernetes schemas, strictly.

Kinds outside the Kubernetes API groups (a ServiceMonitor, say) have no published schema; they are named and passed over.
"""
import sys

import kubernetes_validate
import yaml


def is_core(api_version):
    group = api_version.split("/")[0] if "/" in api_version else ""
    return "." not in group or group.endswith(".k8s.io")


def main():
    bad = 0
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            objects = [o for o in yaml.safe_load_all(file) if o]
        if not objects:
            print(f"{path}: holds no object")
            bad += 1
        for o in objects:
            name = f"{o.get('kind')}/{o.get('metadata', {}).get('name')}"
            if not is_core(o.get("apiVersion", "")):
                print(f"  {path}: {name} is of {o['apiVersion']}, which has no published schema: only its YAML was read")
                continue
            try:
                kubernetes_validate.validate(o, kubernetes_validate.latest_version(), strict=True)
            except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
                where = ".".join(str(p) for p in getattr(error, "path", []) or [])
                print(f"{path}: {name}: {where}: {getattr(error, 'message', error)}")
                bad += 1
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
