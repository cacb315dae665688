#!/bin/sh
# pannier-runtime: runc, with a barrier before the sync calls of containers that use held volumes.
#
# An OCI runtime for Docker's daemon.json. It becomes runc or, where `next` names one, another runtime
# that takes runc's arguments. Whatever is not the creation of a container is left to it at once. Of a
# creation, one grep reads what the bundle mounts. Where that is only what Docker puts into every container,
# the untouched bundle goes on; everything else is looked at by the program in Python.
python='@PYTHON@'
edit='@EDIT@'
next=@NEXT@
held=/run/pannier/barrier/held
catalog=/var/lib/pannier/catalog.json

if [ -n "$next" ]; then
  runc=$next
elif [ -x /usr/sbin/runc ]; then
  runc=/usr/sbin/runc
elif [ -x /usr/bin/runc ]; then
  runc=/usr/bin/runc
elif ! runc=$(command -v runc); then
  echo "pannier-runtime: there is no runc in /usr/sbin, /usr/bin or PATH" >&2
  exit 127
fi

command=
bundle=.
log=
value_of=
for word; do
  if [ -n "$value_of" ]; then
    [ "$value_of" = bundle ] && bundle=$word
    [ "$value_of" = log ] && log=$word
    value_of=
    continue
  fi
  case $command$word in
    --log | -log) value_of=log ;;
    --root | --log-format | --criu | --rootless) value_of=other ;;
    -root | -log-format | -criu | -rootless) value_of=other ;;
    --log=* | -log=*) log=${word#*=} ;;
    -*) ;;
    create | run | restore) command="create " ;;
    "create --bundle" | "create -bundle" | "create -b" | "create --b") value_of=bundle ;;
    create\ --bundle=* | create\ -bundle=* | create\ -b=* | create\ --b=*) bundle=${word#*=} ;;
    create\ *) ;;
    *) exec "$runc" "$@" ;;
  esac
done

[ -n "$command" ] || exec "$runc" "$@"

# On a machine that knows no volumes there is nothing to look for.
for marker in "$held"/*; do break; done
[ -e "$marker" ] || [ -e "$catalog" ] || exec "$runc" "$@"

# What Docker puts into every container: file systems of the kernel's, and files in the container's own
# directory, whose name nobody knows before Docker has made it up.
own=/containers/${bundle##*/}
harmless() {
  sources=$(LC_ALL=C grep -sao '"source"[^,}]*' "$bundle/config.json")
  [ $? -le 1 ] || return 1 # 1: there is none
  set -f
  IFS='
'
  for source in $sources; do
    case $source in
      '"source":"proc"' | '"source":"tmpfs"' | '"source":"devpts"' | '"source":"sysfs"') ;;
      '"source":"cgroup"' | '"source":"mqueue"' | '"source":"shm"') ;;
      *"$own/hostname\"" | *"$own/hosts\"" | *"$own/resolv.conf\"" | *"$own/mounts/shm\"") ;;
      *) return 1 ;;
    esac
  done
}
if [ ! -e "$bundle/config.json" ] || harmless; then
  exec "$runc" "$@"
fi

packages=${edit%/pannier/runtime/edit.py}
if [ ! -x "$python" ] || [ ! -r "$edit" ]; then
  text="pannier-runtime: not started: Pannier's program in $packages is not there, and this container may use a \
volume; install Pannier again, or give Docker its own runtime back (daemon.json)"
  echo "$text" >&2
  [ -z "$log" ] || echo "{\"level\":\"error\",\"msg\":\"$text\"}" >>"$log"
  exit 1
fi
exec "$python" -I -S -c '
import sys
sys.path.append(sys.argv[1])
from pannier.runtime.start import main
main(*sys.argv[2:])
' "$packages" "$runc" "$bundle" "$@"
