#!/bin/bash
# A container's view of things without a container: mounts where a pod has them, the rest read-only, a user of
# no privileges.
#
#   unshare --mount bash tests/pod.sh ROOT MOUNTS HOSTS USER COMMAND...
#
# ROOT is an empty folder, MOUNTS a file of lines SOURCE TARGET ro|rw, HOSTS the file /etc/hosts.
set -euo pipefail
root=$1 mounts=$2 hosts=$3 user=$4
shift 4

mount --make-rprivate /
exec 4<"$mounts" 5<"$hosts"
mount -t tmpfs pod "$root"
for each in /*; do
  case $each in
    /tmp | /root) ;;
    /etc) mkdir "$root/etc" && cp -a /etc/. "$root/etc" && cat <&5 >"$root/etc/hosts" ;;
    *)
      if [ -L "$each" ]; then
        cp -P "$each" "$root$each"
      elif [ -d "$each" ]; then
        mkdir "$root$each"
        mount --rbind "$each" "$root$each"
        [ "$each" = /proc ] || [ "$each" = /dev ] || mount -o remount,ro,bind "$root$each"
      fi
      ;;
  esac
done
# Python itself may be in a home that others do not enter.
if [[ ${PYTHON_AT:-} == /root/* ]]; then
  mkdir -p "$root$PYTHON_AT"
  mount --bind "$PYTHON_AT" "$root$PYTHON_AT"
  mount -o remount,ro,bind "$root$PYTHON_AT"
fi
while read -r source target mode <&4; do
  if [ -d "$source" ]; then
    mkdir -p "$root$target"
  else
    mkdir -p "$root$(dirname "$target")"
    touch "$root$target"
  fi
  mount --bind "$source" "$root$target"
  [ "$mode" = rw ] || mount -o remount,ro,bind "$root$target"
done
mount -o remount,ro "$root"

cd /
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all "$@"
