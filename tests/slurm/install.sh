#!/bin/sh
# Debian's Slurm for the tests, where it is missing and can be installed.
set -eu
PATH="$PATH:/usr/sbin:/sbin"
for program in slurmctld slurmd munged squeue slurmdbd mariadbd; do
	command -v "$program" >/dev/null || missing=1
done
[ -n "${missing:-}" ] || exit 0
command -v apt-get >/dev/null || { echo "slurm: no apt-get here; the tests on Slurm are skipped"; exit 0; }
as_root=""
if [ "$(id -u)" != 0 ]; then
	sudo -n true 2>/dev/null || { echo "slurm: not root; the tests on Slurm are skipped"; exit 0; }
	as_root="sudo -n"
fi
echo "slurm: installing Debian's packages for the tests"
export DEBIAN_FRONTEND=noninteractive
apt="$as_root apt-get -qq -o DPkg::Lock::Timeout=120"
$apt update
# shellcheck disable=SC2086
$apt install -y --no-install-recommends slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core >/dev/null
