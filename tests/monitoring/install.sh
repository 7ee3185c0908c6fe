#!/bin/sh
# Debian's Prometheus and Chromium for the tests, where they are missing and can be installed.
set -eu
. "$(dirname "$0")/../debian.sh"

without() {
	echo "monitoring: $1; the tests that need Prometheus or Chromium are skipped"
	exit 0
}

packages=""
command -v promtool >/dev/null || packages="$packages prometheus"
command -v chromium >/dev/null || packages="$packages chromium"
[ -n "$packages" ] || exit 0
# shellcheck disable=SC2086 - a list of words
install_packages monitoring $packages
# The package starts a server of its own where there is an init system; the tests start theirs.
case "$packages" in *prometheus*)
	if [ -d /run/systemd/system ]; then
		$as_root systemctl disable --now prometheus >/dev/null 2>&1 || true
	fi
	;;
esac
