#!/bin/sh
# Debian's Slurm for the tests, where it is missing and can be installed.
set -eu
PATH="$PATH:/usr/sbin:/sbin"

without() {
	if [ "$missing" = " ip" ]; then
		echo "slurm: $1; without iproute2 all nodes of the tests' cluster are 127.0.0.1"
	else
		echo "slurm: $1; the tests on Slurm are skipped"
	fi
	exit 0
}

missing=""
for program in slurmctld slurmd munged squeue slurmdbd mariadbd ip; do
	command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
command -v apt-get >/dev/null || without "there is no apt-get here"
as_root=""
if [ "$(id -u)" != 0 ]; then
	sudo -n true 2>/dev/null || without "this is not root"
	as_root="sudo -n"
fi
echo "slurm: installing Debian's packages for the tests"
apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}
apt update || without "apt-get update failed"
apt install -y --no-install-recommends \
	slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core iproute2 || without "apt-get install failed"
