#!/usr/bin/env bash
# Runs a command as a container would: as user 10001 with no rights, the whole file system read-only but for one
# directory and what is no disk.
#   as_container.sh WRITABLE COMMAND [ARGUMENT…]
# Needs root, for a mount namespace of its own; nothing of it is left behind or seen by others.
set -euo pipefail
writable=$(realpath "$1")
shift
python=$(realpath "$1")

if [[ ${INSIDE:-} != yes ]]; then
    INSIDE=yes exec unshare --mount --propagation private "$0" "$writable" "$@"
fi
unset INSIDE

mount --bind "$writable" "$writable"
if [[ $python == /root/* ]]; then
    # The interpreter of this machine is in a home that nobody else may enter: show that part of it, and only that.
    part=${python#/root/}
    part=${part%%/*}
    mount -t tmpfs -o mode=755 none /mnt
    mkdir "/mnt/$part"
    mount --bind "/root/$part" "/mnt/$part"
    mount --rbind /mnt /root
fi
mount -o remount,bind,ro /
exec setpriv --reuid 10001 --regid 10001 --clear-groups --no-new-privs --bounding-set=-all "$@"
