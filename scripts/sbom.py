#!/usr/bin/env python3
"""Prints what is linked into a program, as a CycloneDX 1.6 document in JSON.

    scripts/sbom.py FILE PACKAGE TARGET RUSTC [--features F]... [--inside SBOM]...

FILE is the program as it is copied, PACKAGE the crate that it was built from, RUSTC the name and
version of the compiler, whose standard library is linked. SBOM describes a program that FILE holds.
Crates that only run while building (build scripts, procedural macros) are left out.
"""

import argparse
import glob
import hashlib
import json
import os
import re
import subprocess


def checksums():
    """SHA-256 of every published crate, by name and version."""
    with open("Cargo.lock", encoding="utf-8") as lock:
        packages = lock.read().split("[[package]]")
    found = {}
    for package in packages:
        fields = dict(re.findall(r'^(\w+) = "(.*)"$', package, re.MULTILINE))
        if "checksum" in fields:
            found[fields["name"], fields["version"]] = fields["checksum"]
    return found


def tree(package, target, features):
    """Lines of cargo's tree: depth, name, version, license, repository."""
    command = ["cargo", "tree", "--locked", "--package", package, "--target", target]
    command += ["--edges", "normal,no-proc-macro", "--prefix", "depth", "--no-dedupe"]
    command += ["--format", " {p}|{l}|{r}"]
    if features:
        command += ["--features", features]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    for line in output.splitlines():
        depth, rest = line.split(" ", 1)
        crate, license_, repository = rest.split("|")
        name, version = crate.split(" ")[:2]
        yield int(depth), name, version.removeprefix("v"), license_, repository


def component(name, version, license_, repository, sums):
    made = {"type": "library", "bom-ref": f"{name}@{version}", "name": name, "version": version}
    if license_:
        made["licenses"] = [{"expression": license_.replace("/", " OR ")}]
    if (name, version) in sums:
        made["purl"] = f"pkg:cargo/{name}@{version}"
        made["hashes"] = [{"alg": "SHA-256", "content": sums[name, version]}]
    if repository:
        made["externalReferences"] = [{"type": "vcs", "url": repository}]
    return made


def runtime(target, compiler):
    """What rustc and the linker add: Rust's library, and libc where it is linked statically."""
    version = compiler.split(" ")[1]
    std = component("std", version, "MIT OR Apache-2.0", "https://github.com/rust-lang/rust", {})
    made = [std]
    if "musl" in target:
        musl = component("musl", "", "MIT", "https://git.musl-libc.org/cgit/musl", {})
        musl["bom-ref"] = "musl"
        del musl["version"]
        for header in glob.glob(".tools/zig/lib/*/site-packages/ziglang/lib/libc/musl/src/internal/version.h"):
            with open(header, encoding="utf-8") as text:
                musl["version"] = re.search(r'"(.*)"', text.read())[1]
        made.append(musl)
    return made


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ["file", "package", "target", "compiler"]:
        parser.add_argument(name)
    parser.add_argument("--features", action="append", default=[])
    parser.add_argument("--inside", action="append", default=[])
    asked = parser.parse_args()

    sums, components, edges, path = checksums(), {}, {}, []
    for depth, *crate in tree(asked.package, asked.target, ",".join(asked.features)):
        made = component(*crate, sums)
        reference = made["bom-ref"]
        components[reference] = made
        del path[depth:]
        if path:
            edges[path[-1]].add(reference)
        path.append(reference)
        edges.setdefault(reference, set())
    root = path[0]
    for made in runtime(asked.target, asked.compiler):
        components[made["bom-ref"]] = made
        edges[root].add(made["bom-ref"])
        edges[made["bom-ref"]] = set()

    program = components.pop(root)
    with open(asked.file, "rb") as content:
        digest = hashlib.sha256(content.read()).hexdigest()
    program |= {"type": "application", "name": os.path.basename(asked.file)}
    program["hashes"] = [{"alg": "SHA-256", "content": digest}]
    program["properties"] = [{"name": "dunlin:target", "value": asked.target}]
    for name in asked.inside:
        with open(name, encoding="utf-8") as text:
            inside = json.load(text)
        held = inside["metadata"]["component"]
        for made in [held, *inside["components"]]:
            components.setdefault(made["bom-ref"], made)
        for edge in inside["dependencies"]:
            edges.setdefault(edge["ref"], set()).update(edge["dependsOn"])
        edges[root].add(held["bom-ref"])

    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "tools": {"components": [{"type": "application", "name": "rustc", "version": asked.compiler}]},
            "component": program,
        },
        "components": [components[reference] for reference in sorted(components)],
        "dependencies": [{"ref": r, "dependsOn": sorted(edges[r])} for r in sorted(edges)],
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
