#!/bin/sh
# Debian's Slurm for the tests, where it is missing and can be installed.
set -eu
. "$(dirname "$0")/../debian.sh"
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
for program in slurmctld slurmd munged squeue slurmdbd mariadbd my_print_defaults ip; do
	command -v "$program" >/dev/null || missing="$missing $program"
done
[ -n "$missing" ] || exit 0
install_packages slurm \
	slurmctld slurmd slurm-client munge slurmdbd mariadb-server-core mariadb-client-core iproute2
