#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# setup.sh: installs and builds everything that the tests and the demo need on
# a Debian 12 or 13 machine: packages, a Rust toolchain with its library's
# source, bindgen, and a test kernel. What is there already is left as it is.
#
# Results: build/env.sh (to be sourced) and build/bin (tools, first on its
# PATH). What is large is kept in ${XDG_CACHE_HOME:-~/.cache}/kccm, and shared
# by all checkouts.

# shellcheck disable=SC2317,SC2329 # step calls most functions by their names
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
set -euo pipefail

usage() {
	cat <<END
Usage: scripts/setup.sh [OPTIONS]

  --sanitize K    also build the sanitised kernel K: memory or locks
  --bench         also build the kernels of the benchmark, for QEMU and of
                  user-mode Linux, and install what it needs
  --kdir DIR      use this kernel build tree instead of building one
  --tools         packages, Rust and bindgen only, no kernel
  --model         only what \`make model\` needs
  --update        fetch the newest 7.3.x kernel source, even if one is there
  -h, --help      this text

  KCCM_KERNEL_TARBALL=FILE  take the kernel source from this linux-7.3.x
                            tarball instead of Debian's package
  XDG_CACHE_HOME=DIR        where the cache goes (now: $KCCM_CACHE)
END
}

# Options
sanitized='' bench='' given_kdir='' tools_only='' model_only='' update=''

# os_release <name>: a field of the system's description.
os_release() {
	sed -n "s/^$1=//p" /etc/os-release 2>/dev/null | tr -d '"'
}
debian_id=$(os_release ID)
debian_release="$debian_id $(os_release VERSION_ID)"
codename=$(os_release VERSION_CODENAME)

# lock_cache <file>: has one set-up at a time do what the file stands for. What a
# killed one left running holds the lock until it ends. A lock from before is
# given back: nobody waits for one while holding another.
lock=
lock_cache() {
	unlock_cache
	exec {lock}>"$KCCM_CACHE/$1"
	if ! flock -n "$lock"; then
		echo "Another set-up is at work on $KCCM_CACHE; waiting for it to end."
		flock "$lock"
	fi
}

unlock_cache() {
	[ -z "$lock" ] || exec {lock}>&-
	lock=
}

# ---------------------------------------------------------------------------
# Packages

packages=(
	make gcc libc6-dev flex bison bc libelf-dev libssl-dev cpio kmod rsync
	xz-utils perl python3 python3-rich python3-pytest python3-matplotlib
	qemu-system-x86 busybox-static iproute2 keyutils
	ca-certificates debian-archive-keyring
)
# What the benchmark needs besides: what draws its plots, and ONC RPC.
bench_packages=(libtirpc-dev rpcsvc-proto pkg-config)
# What is taken where the machine has none of its own: Debian 12 has its new
# Rust under other names, and only an old bindgen.
rust_packages=(rustc rust-src rustfmt rust-clippy cargo)
bindgen_packages=(bindgen)
# The versions of LLVM to look for, the best known one first.
llvm_versions=(22 21 20 19 18 17)
case $debian_release in
"debian 12")
	rust_packages=(rustc-web rust-web-src rustfmt-web rust-web-clippy cargo-web)
	bindgen_packages=()
	;;
"debian 13")
	llvm_versions=(19 22 21 20 18 17)
	;;
esac

# path_of <program>: on PATH as the user has it: build/bin is on it where
# env.sh was sourced.
path_of() {
	PATH=${PATH//"$KCCM_BUILD/bin:"/} type -P "$1" || true
}

# version_of <program>: as 1.85.0
version_of() {
	[ -n "$1" ] && "$1" --version 2>/dev/null | first_version
}

# new_enough <program> <least version>
new_enough() {
	local version
	version=$(version_of "$1") && version_ge "$version" "$2"
}

# absent <name>...: those that are no line of standard input.
absent() {
	grep -vxF -f - <(printf '%s\n' "$@") || true
}

# missing_packages <package>...
missing_packages() {
	# dpkg-query fails where it does not know one of them.
	{ dpkg-query -W -f '${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true; } |
		sed -n 's/ installed$//p' | absent "$@"
}

llvm_packages() {
	echo "clang-$1 lld-$1 llvm-$1 libclang-$1-dev libclang-rt-$1-dev"
}

# installed_llvm: the best version that is complete.
installed_llvm() {
	local version
	for version in "${llvm_versions[@]}"; do
		if [ -x "/usr/lib/llvm-$version/bin/clang" ] && [ -x "/usr/lib/llvm-$version/bin/ld.lld" ] &&
			[ -x "/usr/lib/llvm-$version/bin/llvm-objcopy" ] && [ -e "/usr/lib/llvm-$version/lib/libclang.so" ]; then
			echo "$version"
			return
		fi
	done
	return 1
}

# fuzzer_of <LLVM's version>: whether its libFuzzer is there.
fuzzer_of() {
	compgen -G "/usr/lib/llvm-$1/lib/clang/*/lib/*/libclang_rt.fuzzer*" >/dev/null
}

# as_root <command>...: directly, or through sudo, which was asked for its
# password before. What a package starts must not keep the lock of this script.
as_root() {
	if [ "$EUID" -eq 0 ]; then
		"$@" {lock}>&-
	else
		sudo -n "$@" {lock}>&-
	fi
}

apt_get() {
	# Another apt may be at work on a machine that has just booted.
	as_root env DEBIAN_FRONTEND=noninteractive apt-get -y -q -o DPkg::Lock::Timeout=600 "$@"
}

# lists_fresh: the package lists were fetched within a day.
lists_fresh() {
	[ -n "$(find /var/lib/apt/lists -maxdepth 1 -name '*Release' -mmin -1440 -print -quit 2>/dev/null)" ]
}

# without_candidate <package>...: those that the package lists do not offer.
without_candidate() {
	apt-cache policy "$@" |
		awk '/^[^ ]/ { name = $1; sub(/:$/, "", name) }
			$1 == "Candidate:" && $2 != "(none)" { print name }' | absent "$@"
}

# install_packages <package>...
install_packages() {
	local removed lacking package

	if [ -n "$(dpkg --audit 2>/dev/null)" ]; then
		as_root dpkg --configure -a
	fi
	lacking=$(without_candidate "$@")
	if [ -n "$lacking" ] || ! lists_fresh; then
		apt_get update
		lacking=$(without_candidate "$@" | xargs)
	fi
	[ -z "$lacking" ] ||
		die "The machine's package sources do not offer $lacking." \
			"Are Debian's main and security suites in /etc/apt/sources.list*?"
	# What the user installed stays. Where something of it is from the release's
	# backports, what goes with it is to be had from there, too.
	removed=$(removed_by "$@")
	if [ -n "$removed" ] && [ "$debian_id" = debian ]; then
		for package in "$@"; do
			if [ -n "$(removed_by "$package")" ]; then
				echo "$package would remove $(removed_by "$package"); looking for it in the backports"
				install_backport "$package"
			fi
		done
		removed=$(removed_by "$@")
	fi
	[ "$removed" != "$broken" ] || die "apt cannot install $* on this machine."
	[ -z "$removed" ] ||
		die "Installing $* would remove: $removed." \
			"If that is fine:  apt-get install --no-install-recommends $*"
	apt_get install --no-install-recommends "$@"
}

# install_backport <package>: from the release's backports, if they have it and
# nothing is removed for it.
install_backport() {
	private_update backports "$codename" "$codename-backports" || return 0
	private_options backports
	apt_options+=(-t "$codename-backports")
	[ -n "$(removed_by "$1")" ] || apt_get "${apt_options[@]}" install --no-install-recommends "$1"
	apt_options=()
}

# removed_by <package>...: what installing them would remove, but for busybox:
# the static one is the same program, and conflicts with it. Or that they cannot
# be installed.
broken="(cannot be installed)"
removed_by() {
	local simulation
	simulation=$(apt-get -s -q "${apt_options[@]}" --no-install-recommends install "$@" 2>&1) || {
		echo "$simulation" >&2
		echo "$broken"
		return
	}
	awk '$1 == "Remv" && $2 != "busybox" { print $2 }' <<<"$simulation" | xargs
}

check_packages() {
	local wanted=("${packages[@]}")
	[ -z "$bench" ] || wanted+=("${bench_packages[@]}")
	step_title="packages"
	step_hint="see whether \`apt-get update\` and \`apt-get install\` work on this machine, then run this again"
	if ! command -v dpkg-query >/dev/null; then
		check_commands
		return
	fi
	new_enough "$(path_of rustc)" "$KCCM_MIN_RUSTC" || wanted+=("${rust_packages[@]}")
	find_bindgen || wanted+=("${bindgen_packages[@]}")
	mapfile -t missing < <(missing_packages "${wanted[@]}")
	llvm_version=$(installed_llvm) || llvm_version=
	[ -z "$llvm_version" ] || fuzzer_of "$llvm_version" || missing+=("libclang-rt-$llvm_version-dev")
	[ "${#missing[@]}" -eq 0 ] && [ -n "$llvm_version" ]
}

prepare_packages() {
	local what="Packages are missing"
	[ "$EUID" -ne 0 ] || return 0
	command -v sudo >/dev/null ||
		die "$what, and this is neither root nor is there sudo." \
			"As root:  apt-get update && apt-get install --no-install-recommends $(missing_names)"
	sudo -n true 2>/dev/null && return
	echo "$what: $(missing_names)"
	sudo -v -p "sudo asks for the password of %p, to install them: " ||
		die "sudo did not let this user install packages." \
			"As root:  apt-get update && apt-get install --no-install-recommends $(missing_names)"
}

missing_names() {
	[ -n "$llvm_version" ] || missing+=("$(llvm_packages "${llvm_versions[0]}")")
	echo "${missing[*]}"
}

# check_commands: for another distribution, what to install is only named.
check_commands() {
	local command lacking=() commands=(make gcc flex bison bc cpio depmod rsync xz perl qemu-system-x86_64 busybox ip tc)
	[ -z "$bench" ] || commands+=(rpcgen tipc pkg-config)
	for command in "${commands[@]}"; do
		command -v "$command" >/dev/null || lacking+=("$command")
	done
	if [ -n "$bench" ]; then
		pkg-config --exists libtirpc || lacking+=("the development files of libtirpc")
	fi
	/usr/bin/python3 -c 'import rich, pytest, matplotlib' 2>/dev/null ||
		lacking+=("/usr/bin/python3 with rich, pytest and matplotlib")
	if ! llvm_version=$(installed_llvm) || ! fuzzer_of "$llvm_version"; then
		lacking+=("LLVM 17 or newer in /usr/lib/llvm-<version>, with compiler-rt")
	fi
	[ "${#lacking[@]}" -eq 0 ] ||
		die "This set-up installs packages on Debian 12 and 13; here, please install: $(printf '%s, ' "${lacking[@]}" | sed 's/, $//')" \
			"and the development files of libelf and OpenSSL (static busybox)."
}

do_packages() {
	local version lacking llvm
	if [ "$debian_release" = "debian 12" ] &&
		dpkg --compare-versions "$(dpkg-query -W -f '${Version}' debian-archive-keyring 2>/dev/null || true)" lt 2023.3+deb12u2; then
		# The first with the keys that sign Debian 13, where the kernel is from.
		missing+=(debian-archive-keyring)
	fi
	if [ -z "$llvm_version" ]; then
		lists_fresh || apt_get update
		lacking=" $(without_candidate "${llvm_versions[@]/#/clang-}" "${llvm_versions[@]/#/lld-}" | xargs) "
		for version in "${llvm_versions[@]}"; do
			if [[ $lacking != *" clang-$version "* && $lacking != *" lld-$version "* ]]; then
				break
			fi
		done
		read -ra llvm <<<"$(llvm_packages "$version")"
		missing+=("${llvm[@]}")
	fi
	install_packages "${missing[@]}"
}

# What checks the model, which needs nothing of the above.
model_packages=(make gcc libc6-dev spin)

check_model() {
	local command
	step_title="spin"
	step_hint="see whether \`apt-get update\` and \`apt-get install\` work on this machine, then run this again"
	if ! command -v dpkg-query >/dev/null; then
		for command in gcc spin; do
			command -v "$command" >/dev/null ||
				die "This set-up installs packages on Debian 12 and 13; here, please install: $command"
		done
		return
	fi
	mapfile -t missing < <(missing_packages "${model_packages[@]}")
	# For missing_names.
	llvm_version=none
	[ "${#missing[@]}" -eq 0 ]
}

prepare_model() {
	prepare_packages
}

do_model() {
	install_packages "${missing[@]}"
}

# ---------------------------------------------------------------------------
# Private apt configurations: packages of other suites, from the mirror that the
# machine uses, without touching its own sources.

# What apt is told of the configuration in use; nothing is the machine's own.
apt_options=()

# private_options <configuration>: sets apt_options.
private_options() {
	local dir=$KCCM_CACHE/apt/$1
	apt_options=(
		-o "Dir::Etc::SourceList=$dir/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o Dir::Etc::Preferences=/dev/null -o Dir::Etc::PreferencesParts=/dev/null
		-o "Dir::State::Lists=$dir/lists" -o "Dir::Cache=$dir/cache"
		-o "Dir::Cache::Archives=$dir/cache/archives"
		-o Acquire::Languages=none -o APT::Sandbox::User=root
	)
}

# private_apt <configuration> <apt's command> <argument>...
private_apt() {
	local command=$2 apt_options
	private_options "$1"
	shift 2
	"$command" -q "${apt_options[@]}" "$@"
}

# debian_mirror: the address that the machine has its Debian packages from.
debian_mirror() {
	# Before the lists are fetched, apt leaves $(LABEL) as it stands.
	# shellcheck disable=SC2016
	apt-get indextargets --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(LABEL)' 'Created-By: Packages' |
		awk -v codename="$codename" '
			$1 !~ /^cdrom:/ && $3 == "main" && $4 !~ /^Debian./ &&
			($2 == codename || $2 ~ /^(stable|oldstable|testing|sid|unstable)$/) {
				sub(/\/$/, "", $1)
				print $1
				exit
			}'
}

# private_update <configuration> <suite>...: makes the configuration, and fetches
# its lists.
private_update() {
	local mirror keyring suite configuration=$1 dir=$KCCM_CACHE/apt/$1
	shift

	command -v apt-get >/dev/null || die "This is no Debian machine: there is no apt-get."
	mirror=$(debian_mirror)
	[ -n "$mirror" ] ||
		die "The machine's package sources name no Debian mirror for this release."
	for keyring in /usr/share/keyrings/debian-archive-keyring.{pgp,gpg}; do
		[ ! -r "$keyring" ] || break
	done
	mkdir -p "$dir/lists/partial" "$dir/cache/archives/partial"
	for suite in "$@"; do
		echo "deb [signed-by=$keyring] $mirror $suite main"
	done >"$dir/sources.list"
	private_apt "$configuration" apt-get -o APT::Update::Error-Mode=any update
}

# newest_update: fetches the lists where the kernel and Rust's sources are.
newest_update() {
	private_update newest trixie trixie-backports
}

# private_versions <package>: newest first.
private_versions() {
	private_apt newest apt-cache madison "$1" | awk '{ print $3 }' | sort -Vr -u
}

# private_download <package> <version>: prints where the file is.
private_download() {
	local dir=$KCCM_CACHE/apt/newest/download
	rm -rf "$dir"
	mkdir -p "$dir"
	(cd "$dir" && private_apt newest apt-get download "$1=$2") >&2
	echo "$dir"/*.deb
}

# ---------------------------------------------------------------------------
# Rust

# library_of <rustc> <version>: the source of its standard library.
library_of() {
	local sysroot dir
	sysroot=$("$1" --print sysroot)
	for dir in "$sysroot/lib/rustlib/src/rust/library" "/usr/src/rustc-$2/library" \
		"$KCCM_CACHE/rust-src-$2/library"; do
		if [ -f "$dir/core/src/lib.rs" ]; then
			echo "$dir"
			return
		fi
	done
	return 1
}

# use_rustc <rustc>: takes it if it is new enough and its library's source is
# there (which only who builds a kernel needs).
use_rustc() {
	new_enough "$1" "$KCCM_MIN_RUSTC" || return 1
	rust_version=$(version_of "$1")
	rust_library=$(library_of "$1" "$rust_version") || [ -n "$given_kdir" ] || return 1
	# Not the one of PATH: rustup's depends on the directory it is called in.
	rust_bin=$("$1" --print sysroot)/bin
	[ -x "$rust_bin/rustc" ] || rust_bin=$(dirname "$1")
}

check_rust() {
	local rustc
	step_title="Rust toolchain"
	step_hint="install rustc $KCCM_MIN_RUSTC or newer with its library's source
(with rustup: rustup component add rust-src), then run this again"
	for rustc in "$(path_of rustc)" /usr/bin/rustc; do
		if use_rustc "$rustc"; then
			step_title="Rust toolchain $rust_version"
			return
		fi
	done
	return 1
}

do_rust() {
	local rustc version debian_version deb dir

	# The compiler on PATH, where Debian has the source that fits it exactly.
	rustc=$(path_of rustc)
	if new_enough "$rustc" "$KCCM_MIN_RUSTC"; then
		version=$(version_of "$rustc")
		echo "$rustc is $version; looking for its library's source"
		if newest_update; then
			debian_version=$(private_versions rust-src | grep -m 1 "^${version//./\\.}+") || debian_version=
			if [ -n "$debian_version" ]; then
				deb=$(private_download rust-src "$debian_version")
				dir=$KCCM_CACHE/rust-src-$version
				rm -rf "$dir.partial" "$dir"
				mkdir "$dir.partial"
				dpkg-deb --fsys-tarfile "$deb" |
					tar -x -C "$dir.partial" --strip-components=4 "./usr/src/rustc-$version/library"
				mv "$dir.partial" "$dir"
				rm -rf "$(dirname "$deb")"
				return
			fi
		fi
		echo "No rust-src $version to be had: taking Debian's own compiler instead"
	fi

	install_packages "${rust_packages[@]}"
	new_enough /usr/bin/rustc "$KCCM_MIN_RUSTC" ||
		die "Debian's rustc is $(version_of /usr/bin/rustc); $KCCM_MIN_RUSTC or newer is needed."
}

# ---------------------------------------------------------------------------
# bindgen

find_bindgen() {
	for bindgen in "$(path_of bindgen)" /usr/bin/bindgen "$KCCM_CACHE/cargo/bin/bindgen"; do
		if new_enough "$bindgen" "$KCCM_MIN_BINDGEN"; then
			return
		fi
	done
	return 1
}

check_bindgen() {
	step_title=bindgen
	step_hint="install bindgen $KCCM_MIN_BINDGEN or newer (cargo install --locked bindgen-cli), then run this again"
	find_bindgen && step_title="bindgen $(version_of "$bindgen")"
}

do_bindgen() {
	[ -x "$rust_bin/cargo" ] || die "There is no cargo in $rust_bin to build bindgen with."
	PATH=$rust_bin:$PATH cargo install --locked --root "$KCCM_CACHE/cargo" bindgen-cli@0.72.1
}

# ---------------------------------------------------------------------------
# Kernel source

# The tarball's name, less its suffix: linux-7.3.4
tarball_name() {
	basename "$1" | sed -nE 's/^(linux-7\.3(\.[0-9]+)?)\.tar\.(xz|gz|zst)$/\1/p'
}

use_source() {
	kernel_source=$1
	kernel_version=$(cat "$1/.kccm-version")
	step_title="kernel source $kernel_version"
}

check_source() {
	local dir
	step_title="kernel source"
	step_hint="where Debian's linux-source-7.3 cannot be had, put the upstream linux-7.3.x.tar.xz
at $KCCM_CACHE/, or name it:  KCCM_KERNEL_TARBALL=/path/to/linux-7.3.x.tar.xz make ...
(about 2 GB must be free in $KCCM_CACHE)"
	if [ -n "${KCCM_KERNEL_TARBALL:-}" ]; then
		[ -f "$KCCM_KERNEL_TARBALL" ] || die "KCCM_KERNEL_TARBALL=$KCCM_KERNEL_TARBALL is not there."
		dir=$(tarball_name "$KCCM_KERNEL_TARBALL")
		[ -n "$dir" ] || die "KCCM_KERNEL_TARBALL=$KCCM_KERNEL_TARBALL is not named like linux-7.3.x.tar.xz."
		dir=$KCCM_CACHE/src/$dir
		[ -f "$dir/.kccm-version" ] && use_source "$dir"
		return
	fi
	if [ -n "$update" ]; then
		# Once: when it is fetched, the newest that is here is the newest.
		update=
		return 1
	fi
	dir=$(find "$KCCM_CACHE/src" -mindepth 2 -maxdepth 2 -name .kccm-version -printf '%h\n' 2>/dev/null |
		sort -V | tail -n 1) || dir=
	[ -n "$dir" ] && use_source "$dir"
}

# unpack <directory's name>: a kernel's tar archive from standard input.
unpack() {
	local dir=$KCCM_CACHE/src/$1
	rm -rf "$dir.partial" "$dir"
	mkdir -p "$dir.partial"
	tar -x -C "$dir.partial" --strip-components=1
	make -s -C "$dir.partial" kernelversion >"$dir.partial/.kccm-version"
	mv "$dir.partial" "$dir"
}

unpack_tarball() {
	case $1 in
	*.xz) xz -dc "$1" ;;
	*.gz) gzip -dc "$1" ;;
	*.zst) zstd -dc "$1" ;;
	esac | unpack "$(tarball_name "$1")"
}

do_source() {
	local version deb tarball

	if [ -n "${KCCM_KERNEL_TARBALL:-}" ]; then
		echo "unpacking $KCCM_KERNEL_TARBALL"
		unpack_tarball "$KCCM_KERNEL_TARBALL"
		return
	fi

	version=
	if newest_update; then
		version=$(private_versions linux-source-7.3 | head -n 1)
	fi
	if [ -n "$version" ]; then
		# The package's version, without the characters that a path should not have.
		[ ! -d "$KCCM_CACHE/src/linux-${version//[~+:]/.}" ] || return 0
		echo "downloading linux-source-7.3 $version"
		deb=$(private_download linux-source-7.3 "$version")
		echo "unpacking linux-source-7.3 $version"
		dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/src/linux-source-7.3.tar.xz | xz -dc |
			unpack "linux-${version//[~+:]/.}"
		rm -rf "$(dirname "$deb")"
		return
	fi

	tarball=$(find "$KCCM_CACHE" -maxdepth 1 -name 'linux-7.3*.tar.*' | sort -V | tail -n 1)
	if [ -z "$tarball" ] || [ -z "$(tarball_name "$tarball")" ]; then
		die "Debian's linux-source-7.3 is not to be had from this machine's mirror."
	fi
	echo "unpacking $tarball"
	unpack_tarball "$tarball"
}

# ---------------------------------------------------------------------------
# Kernels

# A complete one holds this file. It is built where it stays, not renamed when
# complete: its Makefile and its debug information name the place.
complete=.kccm-complete
# Trees that no checkout asked for in this many days are deleted.
keep_days=30

# How many lines kbuild prints for each, about: only the progress needs it.
declare -A kernel_lines=([base]=2170 [memory]=2250 [locks]=2250 [bench]=2310 [uml]=1180)

# kernel_dir <flavour>: named by all that decides what is in it.
kernel_dir() {
	local hash
	hash=$(
		{
			basename "$kernel_source"
			"$rust_bin/rustc" --version
			"$compiler" --version | head -n 1
			"$bindgen" --version
			grep -h CONFIG_ "${fragments[@]}"
		} | sha256sum | cut -c1-12
	)
	echo "$KCCM_CACHE/kernel-$kernel_version-$1-$hash"
}

# set_flavour <flavour>: sets fragments, kernel, image (what of it is booted, and
# the name of that in env.sh), and what it is built with.
set_flavour() {
	local base=$KCCM_ROOT/scripts/kernel/base.config
	flavour=$1
	fragments=("$KCCM_ROOT/scripts/kernel/$flavour.config")
	kernel_arch=x86_64 kernel_llvm=$llvm_bin/ compiler=$llvm_bin/clang
	image=arch/x86/boot/bzImage image_name=BZIMAGE
	case $flavour in
	base) ;;
	uml)
		# Built with clang, it does not survive its first process.
		kernel_arch=um kernel_llvm='' compiler=gcc
		image=linux image_name=LINUX
		;;
	*) fragments=("$base" "${fragments[@]}") ;;
	esac
	kernel=$(kernel_dir "$flavour")
}

kernel_complete() {
	[ -f "$kernel/$complete" ] && [ -f "$kernel/$image" ] && [ -f "$kernel/Module.symvers" ]
}

check_kernel() {
	set_flavour base
	step_title="test kernel $kernel_version"
	step_hint="the log tells what kbuild stopped at; about 1 GB must be free in $KCCM_CACHE.
Run this again: it goes on where it stopped (to begin afresh, delete $kernel)"
	kernel_complete || return 1
	kdir=$kernel
	bzimage=$kernel/$image
	touch "$kernel/$complete"
}

check_other_kernel() {
	set_flavour "$other"
	case $other in
	bench) step_title="kernel for the benchmark $kernel_version" ;;
	uml) step_title="user-mode Linux $kernel_version" ;;
	*) step_title="kernel with sanitizers ($other) $kernel_version" ;;
	esac
	step_hint="the log tells what kbuild stopped at; about 2 GB must be free in $KCCM_CACHE.
Run this again: it goes on where it stopped (to begin afresh, delete $kernel)"
	kernel_complete || return 1
	touch "$kernel/$complete"
}

# other_results: adds those of these kernels that there are to results.
other_results() {
	local name
	for name in memory locks bench uml; do
		set_flavour "$name"
		if kernel_complete; then
			results+=("KCCM_KDIR_${name^^}=$kernel" "KCCM_${image_name}_${name^^}=$kernel/$image")
		fi
	done
}

prepare_kernel() {
	lock_cache ".lock-${kernel##*/}"
	echo "A kernel is built once, in 5 to 15 minutes, and kept in $KCCM_CACHE."
}

do_kernel() {
	local stale
	# Another set-up may have made it by now.
	! kernel_complete || return 0
	find "$KCCM_CACHE" -maxdepth 2 -path "*/kernel-*/$complete" -mtime +"$keep_days" |
		while read -r stale; do
			echo "deleting $(dirname "$stale"): not asked for in $keep_days days"
			rm -rf "$(dirname "$stale")"
		done
	"$KCCM_ROOT/scripts/kernel/build.sh" "$kernel_arch" "$kernel_source" "$kernel" "$kernel_llvm" "${fragments[@]}"
	touch "$kernel/$complete"
}

prepare_other_kernel() {
	prepare_kernel
}

do_other_kernel() {
	do_kernel
}

describe_kernel() {
	local count
	count=$(grep -c '^  [A-Z]' "$1") || return 0
	if [ "$count" -lt "${kernel_lines[$flavour]}" ]; then
		printf '%d of about %d  ' "$count" "${kernel_lines[$flavour]}"
	fi
	grep '^  [A-Z]' "$1" | tail -n 1 | tr -s ' '
}

describe_other_kernel() {
	describe_kernel "$1"
}

check_given_kernel() {
	step_title="given kernel $given_kdir"
	kdir=$(cd "$given_kdir" 2>/dev/null && pwd -P) || die "There is no kernel build tree at KDIR=$given_kdir."
	bzimage=$kdir/arch/x86/boot/bzImage
	[ -f "$bzimage" ] ||
		die "$kdir has no arch/x86/boot/bzImage for the guests to boot." \
			"Name a tree that a kernel was built in (make bzImage modules), or leave KDIR out."
}

# ---------------------------------------------------------------------------
# Results

write_bin() {
	local tool
	mkdir -p "$KCCM_BUILD/bin"
	for tool in rustc rustdoc rustfmt clippy-driver cargo cargo-clippy; do
		rm -f "$KCCM_BUILD/bin/$tool"
		if [ -x "$rust_bin/$tool" ]; then
			ln -s "$rust_bin/$tool" "$KCCM_BUILD/bin/$tool"
		fi
	done
	ln -sf "$bindgen" "$KCCM_BUILD/bin/bindgen"
}

write_env() {
	local name env=$KCCM_BUILD/env.sh
	{
		echo "# SPDX-License-Identifier: GPL-2.0"
		echo "# Made by scripts/setup.sh: what the project's builds and guests use."
		for name in "$@"; do
			printf 'export %s=%q\n' "${name%%=*}" "${name#*=}"
		done
		# shellcheck disable=SC2016
		printf 'export PATH=%q:$PATH\n' "$KCCM_BUILD/bin"
	} >"$env.new"
	if cmp -s "$env.new" "$env"; then
		rm "$env.new"
	else
		mv "$env.new" "$env"
	fi
}

# ---------------------------------------------------------------------------

parse_options() {
	while [ $# -gt 0 ]; do
		case $1 in
		--sanitize)
			case ${2:-} in
			memory | locks) sanitized=$2 ;;
			*) die "--sanitize needs memory or locks" ;;
			esac
			shift
			;;
		--bench) bench=yes ;;
		--kdir)
			[ $# -ge 2 ] || die "--kdir needs a directory"
			given_kdir=$2
			shift
			;;
		--tools) tools_only=yes ;;
		--model) model_only=yes ;;
		--update) update=yes ;;
		-h | --help)
			usage
			exit
			;;
		*)
			usage >&2
			exit 2
			;;
		esac
		shift
	done
	[ -z "$bench" ] || [ -z "$given_kdir" ] ||
		die "The benchmark measures on kernels of its own: --bench and --kdir do not go together."
}

# check_machine: what no installing could mend.
check_machine() {
	local path
	[ "$(uname -m)" = x86_64 ] ||
		die "The test kernel and its guests are x86-64; this machine is $(uname -m)."
	for path in "$KCCM_ROOT" "$KCCM_CACHE"; do
		case $path in
		*[[:space:]:%]*)
			die "Kbuild cannot work in a directory whose path holds a space, a colon or a per cent sign: $path" \
				"Move the checkout, or set XDG_CACHE_HOME for the cache."
			;;
		esac
	done
}

main() {
	local results other others=()

	parse_options "$@"
	check_machine

	trap interrupted INT TERM HUP
	trap end_progress EXIT

	# Not even the cache is needed when it is there.
	if [ -n "$model_only" ] && check_model; then
		return
	fi

	own_build
	mkdir -p "$KCCM_CACHE" "$KCCM_LOGS"
	lock_cache .lock-tools

	if [ -n "$model_only" ]; then
		step model model
		return
	fi
	if [ -n "$tools_only" ]; then
		steps_total=3
	elif [ -n "$given_kdir" ]; then
		steps_total=4
	else
		[ -z "$sanitized" ] || others+=("$sanitized")
		[ -z "$bench" ] || others+=(bench uml)
		steps_total=$((5 + ${#others[@]}))
	fi

	step packages packages
	llvm_bin=/usr/lib/llvm-$llvm_version/bin
	export LIBCLANG_PATH=/usr/lib/llvm-$llvm_version/lib
	step rust rust
	step bindgen bindgen
	write_bin
	export PATH=$KCCM_BUILD/bin:$PATH RUST_LIB_SRC=$rust_library

	results=(
		"RUST_LIB_SRC=$rust_library"
		"LIBCLANG_PATH=$LIBCLANG_PATH"
	)
	if [ -z "$tools_only" ]; then
		if [ -n "$given_kdir" ]; then
			step given_kernel kernel
		else
			step source kernel-source
			# Each kernel has a lock of its own, so that nobody waits for another's.
			unlock_cache
			step kernel kernel
			for other in "${others[@]}"; do
				step other_kernel "kernel-$other"
			done
		fi
		results+=("KCCM_KDIR=$kdir" "KCCM_BZIMAGE=$bzimage")
		if [ -z "$given_kdir" ]; then
			results+=("KCCM_LLVM=$llvm_bin/")
			other_results
		fi
		write_env "${results[@]}"
	fi

	if [ "$steps_done" -eq 0 ]; then
		echo "Set-up: everything is there${kernel_version:+ (Linux $kernel_version, rustc $rust_version)}."
	else
		echo "Set-up: done in $(duration $((SECONDS - steps_start)))."
	fi
}

# On one line: the script may be replaced (git pull) while it runs.
main "$@"; exit
