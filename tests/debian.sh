# Sourced by the install scripts: puts Debian's packages on this machine, or calls their `without`
# with the reason why it cannot.

# install_packages WHAT PACKAGE...
install_packages() {
	what=$1
	shift
	command -v apt-get >/dev/null || without "there is no apt-get here"
	as_root=""
	if [ "$(id -u)" != 0 ]; then
		sudo -n true 2>/dev/null || without "this is not root"
		as_root="sudo -n"
	fi
	echo "$what: installing Debian's packages for the tests: $*"
	apt update || without "apt-get update failed"
	apt install -y --no-install-recommends "$@" || without "apt-get install failed"
}

apt() {
	$as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=120 "$@" >/dev/null
}
