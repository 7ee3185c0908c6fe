#!/bin/sh
# Debian's zsh and fish for the tests of completion, where they are missing and can be installed.
set -eu

without() {
	echo "shells: $1; completion is not tested in:$missing"
	exit 0
}

missing=""
for shell in zsh fish; do
	command -v "$shell" >/dev/null || missing="$missing $shell"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || without "there is no apt-get here"
as_root=""
if [ "$(id -u)" != 0 ]; then
	sudo -n true 2>/dev/null || without "this is not root"
	as_root="sudo -n"
fi
echo "shells: installing Debian's$missing for the tests"
apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}
apt update || without "apt-get update failed"
# shellcheck disable=SC2086 - a list of words
apt install -y --no-install-recommends $missing || without "apt-get install failed"
