#!/usr/bin/env bash
# SPDX-License-Identifier: GPL-2.0
#
# rustdoc.sh: documents each module of a build, with its private items.
#
# Kbuild has no rustdoc target for out-of-tree modules, but it calls what
# RUSTC_OR_CLIPPY names with all that the crate needs: flags, configuration and
# environment. `make doc` names this script, which compiles the crate as asked
# and then hands rustdoc the same flags, less those that say what to emit.

set -euo pipefail

rustc "$@"

doc=$(dirname "$(realpath "$0")")/../build/doc
flags=()
while [ $# -gt 0 ]; do
	case $1 in
	--emit=*) ;;
	--out-dir) shift ;;
	# The root, last: the crate is named after it.
	*.rs) root=$1 ;;
	*) flags+=("$1") ;;
	esac
	shift
done

# What is compiled only to be checked is no module.
grep -q '^module! ' "${root:?no crate to document}" || exit 0

mkdir -p "$doc"
exec rustdoc "${flags[@]}" --document-private-items --generate-link-to-definition --enable-index-page \
	--extern-html-root-url core=https://doc.rust-lang.org \
	--extern-html-root-url kernel=https://rust.docs.kernel.org \
	--extern-html-root-url pin_init=https://rust.docs.kernel.org \
	-Drustdoc::broken_intra_doc_links -Arustdoc::private_intra_doc_links --output "$doc" "$root"
