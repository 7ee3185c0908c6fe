#!/bin/sh
# Debian's Prometheus and Chromium for the tests, where they are missing and can be installed.
set -eu

without() {
	echo "monitoring: $1; the tests that need Prometheus or Chromium are skipped"
	exit 0
}

packages=""
command -v promtool >/dev/null || packages="$packages prometheus"
command -v chromium >/dev/null || packages="$packages chromium"
[ -n "$packages" ] || exit 0
command -v apt-get >/dev/null || without "there is no apt-get here"
as_root=""
if [ "$(id -u)" != 0 ]; then
	sudo -n true 2>/dev/null || without "this is not root"
	as_root="sudo -n"
fi
echo "monitoring: installing Debian's$packages for the tests"
apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}
apt update || without "apt-get update failed"
# shellcheck disable=SC2086 - a list of words
apt install -y --no-install-recommends $packages || without "apt-get install failed"
# The package starts a server of its own where there is an init system; the tests start theirs.
case "$packages" in *prometheus*)
	if [ -d /run/systemd/system ]; then
		$as_root systemctl disable --now prometheus >/dev/null 2>&1 || true
	fi
	;;
esac
