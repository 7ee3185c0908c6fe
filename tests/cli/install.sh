#!/bin/sh
# Debian's zsh and fish for the tests of completion, where they are missing and can be installed.
set -eu
. "$(dirname "$0")/../debian.sh"

without() {
	echo "shells: $1; completion is not tested in:$missing"
	exit 0
}

missing=""
for shell in zsh fish; do
	command -v "$shell" >/dev/null || missing="$missing $shell"
done
[ -n "$missing" ] || exit 0
# shellcheck disable=SC2086 - a list of words
install_packages shells $missing
