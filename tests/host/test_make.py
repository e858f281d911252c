# SPDX-License-Identifier: GPL-2.0
"""What `make` does and says, in a copy of the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cluster import settings

# What make.sh and the Makefile call, beside what a test puts in their place.
TOOLS = (
    *("bash", "sh", "env", "make", "cat", "cut", "dirname", "echo", "find", "grep", "head", "printf", "rm"),
    *("sed", "sort", "tail", "tr", "uname", "rsync"),
)

RUSTC = "rustc 1.95.0 (59807616e 2026-04-14)"
BINDGEN = "bindgen 0.72.1"
GOOD = {
    "CONFIG_RUST": "y",
    "CONFIG_RUSTC_VERSION_TEXT": f'"{RUSTC}"',
    "CONFIG_CC_IS_CLANG": "y",
    "CONFIG_CLANG_VERSION": "990100",
}


def copy_tree(to: Path) -> Path:
    """The sources, as git has them and as they are here."""
    command = ["rsync", "-a", "--filter=:- .gitignore", "--exclude=/.git", "--exclude=/build"]
    subprocess.run([*command, f"{settings.TREE}/", f"{to}/"], check=True, timeout=60)
    return to


@dataclass
class Place:
    """A copy of the tree, a build tree of no kernel, and the programs on PATH."""

    tree: Path
    kdir: Path
    bin: Path
    variables: dict[str, str] = field(default_factory=dict)
    # What was in the tree before anything was built.
    sources: set[str] = field(default_factory=set)

    def program(self, name: str, says: str) -> None:
        """Put a program on PATH, in the place of another of that name."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\necho '{says}'\n")
        path.chmod(0o755)

    def configure(self, release: str = "7.3.4-test", **change: str) -> None:
        """Make it a build tree: one that is good, but for some options."""
        (self.kdir / "include/config").mkdir(parents=True, exist_ok=True)
        (self.kdir / "include/config/kernel.release").write_text(f"{release}\n")
        options = {name: value for name, value in (GOOD | change).items() if value}
        text = "".join(f"{name}={value}\n" for name, value in options.items())
        (self.kdir / "include/config/auto.conf").write_text(text)
        # In the place of kbuild.
        rule = "%:\n\t@echo kbuild: $@, M=$(M), LLVM=$(LLVM), X=$(X), ARCH=$(ARCH)\n"
        (self.kdir / "Makefile").write_text(rule)

    def make(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run make in the copy."""
        return subprocess.run(
            ["make", "--no-print-directory", *arguments],
            cwd=self.tree,
            env={"PATH": str(self.bin), "HOME": str(self.bin), **self.variables},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=120,
            check=False,
        )

    def fails(self, *arguments: str) -> str:
        """Run make, which must fail; what it says, in one line."""
        result = self.make(*arguments)
        assert result.returncode != 0, result.stdout
        return " ".join(result.stdout.split())


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, which the tests of this file do not change."""
    return copy_tree(tmp_path_factory.mktemp("copy"))


@pytest.fixture
def place(copy: Path, tmp_path: Path) -> Place:
    """A copy of the tree, with all that it takes to build in it, but no kernel."""
    made = Place(copy, tmp_path / "kdir", tmp_path / "bin")
    made.bin.mkdir()
    made.kdir.mkdir()
    for tool in TOOLS:
        found = shutil.which(tool, path=f"{os.environ['PATH']}:/usr/bin:/bin")
        assert found, f"no {tool} on this machine"
        (made.bin / tool).symlink_to(found)
    made.program("rustc", RUSTC)
    made.program("bindgen", BINDGEN)
    made.configure()
    return made


# What a kernel's build tree must be.


def test_kbuild_is_called(place: Place) -> None:
    """With a build tree that is as it should be, make is kbuild's with what it needs."""
    for arguments, goal in (([], "modules"), (["modules_install"], "modules_install")):
        result = place.make(f"KDIR={place.kdir}", "X=y", *arguments)
        assert result.returncode == 0, result.stdout
        assert f"kbuild: {goal}, M={place.tree}, LLVM=1, X=y" in result.stdout
    result = place.make(f"KDIR={place.kdir}", "LLVM=-42")
    assert "LLVM=-42," in result.stdout
    place.configure(CONFIG_CC_IS_CLANG="")
    assert "LLVM=," in place.make(f"KDIR={place.kdir}").stdout
    place.configure(CONFIG_CC_IS_CLANG="", CONFIG_UML="y")
    assert "LLVM=, X=, ARCH=um" in place.make(f"KDIR={place.kdir}").stdout


def test_no_build_tree(place: Place) -> None:
    """A KDIR that is not there, or nothing that a kernel was built in."""
    nowhere = place.kdir / "nowhere"
    said = place.fails(f"KDIR={nowhere}")
    assert f"There is no kernel build tree at KDIR={nowhere}" in said
    assert "make demo" in said
    shutil.rmtree(place.kdir / "include")
    said = place.fails(f"KDIR={place.kdir}")
    assert f"{place.kdir} is not a configured kernel build tree" in said


def test_running_kernel_without_build_tree(place: Place) -> None:
    """Without KDIR it is the running kernel's, which may not be installed."""
    place.program("uname", "9.9.9-of-nobody")
    said = place.fails()
    assert "The running kernel (9.9.9-of-nobody) has no build tree on this machine" in said
    assert "linux-headers-9.9.9-of-nobody" in said


@pytest.mark.parametrize("release", ["6.12.38+deb13-amd64", "7.2.11", "7"])
def test_kernel_too_old(place: Place, release: str) -> None:
    """Rust abstractions that KCCM needs came with 7.3."""
    place.configure(release)
    said = place.fails(f"KDIR={place.kdir}")
    assert f"Found kernel {release} at {place.kdir}; KCCM needs Linux 7.3 or newer" in said


@pytest.mark.parametrize("release", ["7.3.0", "7.3-rc1", "7.10.1", "8.0"])
def test_kernel_new_enough(place: Place, release: str) -> None:
    """Versions are numbers, not text."""
    place.configure(release)
    assert place.make(f"KDIR={place.kdir}").returncode == 0


def test_kernel_without_rust(place: Place) -> None:
    """A kernel that was built without Rust: the cause, and what to do."""
    place.configure(CONFIG_RUST="")
    said = place.fails(f"KDIR={place.kdir}")
    assert f"Kernel 7.3.4-test at {place.kdir} was built without Rust" in said
    assert "CONFIG_RUST" in said and "make rustavailable" in said


def test_another_rustc(place: Place) -> None:
    """A kernel that was built with another rustc: both are named."""
    place.program("rustc", "rustc 1.94.1 (e408947bf 2026-03-25)")
    said = place.fails(f"KDIR={place.kdir}")
    assert "was built with another Rust compiler than the one on PATH" in said
    assert f"the kernel's: {RUSTC}" in said
    assert "on PATH: rustc 1.94.1 (e408947bf 2026-03-25)" in said


def test_no_rustc(place: Place) -> None:
    """No rustc at all: the one that is needed is named."""
    (place.bin / "rustc").unlink()
    said = place.fails(f"KDIR={place.kdir}")
    assert f"There is no working rustc on PATH; kernel 7.3.4-test was built with {RUSTC}" in said


def test_bindgen(place: Place) -> None:
    """No bindgen, or one that is too old."""
    place.program("bindgen", "bindgen 0.65.1")
    said = place.fails(f"KDIR={place.kdir}")
    assert "Found bindgen 0.65.1 on PATH; KCCM needs 0.71.1 or newer" in said
    (place.bin / "bindgen").unlink()
    said = place.fails(f"KDIR={place.kdir}")
    assert "There is no bindgen on PATH; KCCM needs 0.71.1 or newer" in said


def test_path_with_a_space(place: Place, tmp_path: Path) -> None:
    """Kbuild cannot build there, and would say so in riddles."""
    place.tree = copy_tree(tmp_path / "a b")
    said = place.fails(f"KDIR={place.kdir}")
    assert "Kbuild cannot build in a directory whose path holds a space" in said


# Options, and help.


@pytest.fixture
def stubbed(place: Place, tmp_path: Path) -> Place:
    """A copy in which nothing is set up and nothing built."""
    place.tree = copy_tree(tmp_path / "stubbed")
    (place.tree / "build").mkdir()
    (place.tree / "build/env.sh").write_text("")
    for script in ("setup.sh", "kernel/modules.sh"):
        (place.tree / "scripts" / script).write_text("#!/bin/sh\nexit 0\n")
    # The real ones, whatever they need.
    place.variables["PATH"] = f"{place.bin}:{os.environ['PATH']}"
    return place


@pytest.mark.parametrize("nodes", ["1", "9", "-3", "three", "2.5"])
def test_number_of_nodes(stubbed: Place, nodes: str) -> None:
    """The demonstration has 2 to 8 nodes, and says so."""
    said = stubbed.fails("demo", f"NODES={nodes}")
    assert re.search("NODES must be 2 to 8|--nodes: invalid int", said), said


@pytest.mark.parametrize("nodes", ["2", "6", "-3", "three"])
def test_number_of_tortured_nodes(stubbed: Place, nodes: str) -> None:
    """As many as the run is made for, and it says so."""
    said = stubbed.fails("torture", f"NODES={nodes}")
    assert re.search("--nodes must be 3 to 5|--nodes: invalid int", said), said


def test_sanitize(stubbed: Place) -> None:
    """There are three sanitisers, of which one is used at a time."""
    for goal in ("demo", "test", "torture"):
        for wrong in ("everything", "memory locks"):
            said = stubbed.fails(goal, f"SANITIZE={wrong}")
            assert f"SANITIZE={wrong}: it must be one of memory locks leaks" in said


def test_help_names_every_target(place: Place) -> None:
    """`make help` has all that there is, and no more."""
    makefile = (place.tree / "Makefile").read_text()
    targets = set(re.findall(r"^PHONY [:+]= (.*)$", makefile, re.MULTILINE))
    targets = {name for names in targets for name in names.split()} - {"help"}
    said = place.make("help").stdout
    # Parts of "check", and the other half of "rustfmtcheck".
    parts = {"shellcheck", "kernel-doc", "rustfmt"}
    assert parts <= targets and all(part in said for part in parts)
    assert set(re.findall(r"^  ([\w-]+) +- ", said, re.MULTILINE)) == targets - parts


# With a kernel.


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A copy in which the module has been built, against the test kernel."""
    kdir = settings.variable("KCCM_KDIR")
    if not kdir:
        pytest.skip("no kernel build tree: make setup")
    tree = copy_tree(tmp_path_factory.mktemp("built"))
    sources = files(tree)
    # The tools that the kernel was built with.
    (tree / "build").mkdir()
    shutil.copy(settings.BUILD / "env.sh", tree / "build")
    variables = {name: os.environ[name] for name in ("PATH", "HOME")}
    place = Place(tree, Path(kdir), tree, variables, sources)
    result = place.make(f"KDIR={kdir}")
    assert result.returncode == 0, result.stdout
    yield place


def files(tree: Path) -> set[str]:
    """The names of all files in a tree."""
    return {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}


def test_module_alone_is_built(built: Place) -> None:
    """`make` builds the module, no sample and no test."""
    assert [name for name in files(built.tree) if name.endswith(".ko")] == ["kccm.ko"]
    again = built.make(f"KDIR={built.kdir}")
    assert again.returncode == 0
    assert not re.search(r"^  (RUSTC|CC|BINDGEN|LD)", again.stdout, re.MULTILINE), again.stdout


def test_modules_install(built: Place, tmp_path: Path) -> None:
    """`make modules_install` puts it where modprobe looks."""
    result = built.make(f"KDIR={built.kdir}", "modules_install", f"INSTALL_MOD_PATH={tmp_path}")
    assert result.returncode == 0, result.stdout
    release = (built.kdir / "include/config/kernel.release").read_text().strip()
    modules = {path.relative_to(tmp_path) for path in tmp_path.rglob("*.ko*")}
    assert modules == {Path("lib/modules") / release / "updates/kccm.ko"}


def test_clean(built: Place) -> None:
    """`make clean` leaves the sources, whether the kernel is still there or not."""
    assert files(built.tree) > built.sources
    (built.tree / "build/log").mkdir()
    (built.tree / "build/log/x.log").write_text("")
    result = built.make("clean")
    assert result.returncode == 0, result.stdout
    assert files(built.tree) == built.sources
