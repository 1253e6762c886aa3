#!/bin/bash
# A container's view of things without a container: FOLDER/config, secrets, models, cache and tmp where the
# chart mounts them, the rest read-only, a user of no privileges.
#
#   unshare --mount bash tests/pod.sh FOLDER USER CONFIG_PATH COMMAND...
set -euo pipefail
folder=$1 user=$2 config=$3
shift 3

mount --make-rprivate /
root=$folder/root
mkdir -p "$root"
mount -t tmpfs pod "$root"
for each in /*; do
  if [ -L "$each" ]; then
    cp -P "$each" "$root$each"
  elif [ -d "$each" ] && [[ $each != "$root" && $each != /tmp && $each != /root && $each != /config && $each != /secrets ]]; then
    mkdir "$root$each"
    mount --rbind "$each" "$root$each"
    [ "$each" = /proc ] || [ "$each" = /dev ] || mount -o remount,ro,bind "$root$each"
  fi
done
# Python itself may be in a home that others do not enter.
if [[ ${PYTHON_AT:-} == /root/* ]]; then
  mkdir -p "$root$PYTHON_AT"
  mount --bind "$PYTHON_AT" "$root$PYTHON_AT"
  mount -o remount,ro,bind "$root$PYTHON_AT"
fi
[ -e "$folder/hosts" ] && mount --bind "$folder/hosts" "$root/etc/hosts"
for each in config secrets models; do
  mkdir -p "$root/$each"
  mount --bind "$folder/$each" "$root/$each"
  mount -o remount,ro,bind "$root/$each"
done
for each in cache tmp; do
  mkdir -p "$root/$each"
  mount -t tmpfs -o "uid=$user,gid=$user" "$each" "$root/$each"
done
mount -o remount,ro "$root"

cd /
exec chroot "$root" setpriv --reuid "$user" --regid "$user" --clear-groups --no-new-privs \
  --bounding-set=-all --inh-caps=-all env -i CONFIG_PATH="$config" PATH="$PATH" \
  PYTHONPATH="${PYTHONPATH:-}" PYTHONDONTWRITEBYTECODE=1 "$@"
