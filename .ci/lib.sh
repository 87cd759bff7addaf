# Shared by the scripts beside it: how to get a Debian package, or say in one sentence why not.

fail() {
    echo "$*" >&2
    exit 1
}

# as_root COMMAND…: run it as root, directly or by a sudo that asks for no password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    else
        sudo -n "$@"
    fi
}

may_install() {
    command -v apt-get >/dev/null || return 1
    [ "$(id -u)" -eq 0 ] && return 0
    command -v sudo >/dev/null && sudo -n true 2>/dev/null
}

# install_packages PACKAGE…: by apt-get; no service that comes with them is started.
install_packages() {
    may_install || fail "Missing: $*. Install them with your system's package manager, or run this as root on Debian."
    echo "Installing $* with apt-get." >&2
    local policy=/usr/sbin/policy-rc.d made_policy=no status=0
    if [ ! -e "$policy" ]; then
        # Debian starts what it installs (nginx, on port 80); 101 forbids it. The tests start their own, elsewhere.
        printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
        as_root chmod 755 "$policy"
        made_policy=yes
    fi
    {
        as_root apt-get -qq update &&
            as_root env DEBIAN_FRONTEND=noninteractive \
                apt-get -qq -y -o Dpkg::Use-Pty=0 install --no-install-recommends "$@" >&2
    } || status=1
    [ "$made_policy" = no ] || as_root rm -f "$policy"
    [ "$status" -eq 0 ] || fail "apt-get could not install $*; its own words are above."
}
